"""`nld eval decode`: tokens per forward, accepted length and agreement with greedy AR, mode by mode."""

import argparse

from nld_train.commands.eval import (
    add_model_options,
    add_prompt_options,
    asked_identity,
    asked_prompts,
    finish_evaluation,
    model_choice,
    output_folder,
    parse_numbers,
)
from nld_train.config import require
from nld_train.decode.modes import MODES

HELP = """\
Decode prompts greedily in every mode asked for, and compare with greedy AR: tokens per forward, accepted length and its
distribution by place in the draft, agreement, and accuracy where the prompts have references. Several blocks and
thresholds make a sweep: the frontier of agreement against tokens per forward.

  nld eval decode out/demo/hf --prompts prompts.jsonl --mode all
  nld eval decode out/demo/hf --prompts prompts.jsonl --mode diffusion --block 8,16 --threshold 0.5,0.7,0.9
  nld eval decode out/demo/hf --adapter out/demo/hf --prompts prompts.jsonl --mode self-spec  both ways
  nld eval decode out/demo/hf --sampler --prompts prompts.jsonl --mode diffusion  without and with the trained sampler
  nld eval decode out/demo_vlm/hf --prompts pictures.jsonl --chat --blank-images  what is answered without looking

A row of the file: {"prompt": TEXT} or {"turns": [TEXT, ...]}, and if you like "images" (paths beside the file, before
the text of the turn), "category", "reference", "id".
"""
BLOCK, MOST_BLOCK = "32", 1024
THRESHOLD = "0.9"


def add_decode_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = evaluations.add_parser(
        "decode", help="decode prompts in every mode", description=HELP, formatter_class=raw
    )
    add_model_options(parser)
    add_prompt_options(parser)
    parser.add_argument("--mode", default="all", metavar="M", help=f"{', '.join(MODES)}, several with commas, or all")
    parser.add_argument("--block", default=BLOCK, metavar="B", help="block lengths, with commas (default: %(default)s)")
    parser.add_argument(
        "--threshold", default=THRESHOLD, metavar="P", help="diffusion's, with commas (default: %(default)s)"
    )
    parser.add_argument(
        "--sampler", action="store_true", help="diffusion also with the trained sampler in the folder's sampler/"
    )
    parser.add_argument(
        "--blank-images", action="store_true", help="show a grey image of its size in place of every image"
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="text that ends an answer")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="prompts at once (default: %(default)s)")
    parser.set_defaults(run=run_decode)


def run_decode(args: argparse.Namespace) -> int:
    # 1. The command line, the prompts and the output folder are checked before a model is loaded.
    from nld_train.decode.settings import DecodeConfig
    from nld_train.evaluation.results import images_digest, parse_shard, records_path

    modes = read_modes(args.mode)
    blocks = parse_numbers("--block", args.block, int, 1, MOST_BLOCK)
    thresholds = parse_numbers("--threshold", args.threshold, float, 0.0, 1.0)
    require(args.batch >= 1, f"--batch {args.batch}", "1 or more", "use 1")
    require(all(args.stop), "an empty --stop", "a text", "leave it out")
    fits = not args.sampler or "diffusion" in modes
    require(fits, f"--sampler with --mode {args.mode}", "diffusion among the modes", "leave it out")
    decode, shard = DecodeConfig(max_new_tokens=args.max_new_tokens), parse_shard(args.shard)
    prompts = asked_prompts(args)
    images = [path for prompt in prompts for path in prompt.images]
    require(bool(images) or not args.blank_images, "--blank-images", "prompts with images", "leave it out")

    from nld_train.decode.image_prompt import check_image_folder, load_image_processor
    from nld_train.decode.load import load_drafter_adapter
    from nld_train.decode.run import user_errors
    from nld_train.evaluation.contexts import ContextSettings, build_contexts
    from nld_train.evaluation.decode_figures import decode_table
    from nld_train.evaluation.decode_sweep import SweepRun, check_sweep, sweep_points
    from nld_train.evaluation.evaluated_model import model_identity, open_evaluated_model, sampler_identity
    from nld_train.evaluation.progress_bar import evaluation_progress
    from nld_train.evaluation.record_file import COUNT, RecordFile

    points = sweep_points(modes, blocks, thresholds, args.adapter is not None, args.sampler)
    check_sweep(points, decode.max_new_tokens)
    choice, target = model_choice(args), output_folder(args)
    if images:
        check_image_folder(choice.folder)
    identity = {
        "kind": "decode",
        "points": [point.name for point in points],
        **model_identity(choice),
        "sampler": sampler_identity(choice) if args.sampler else None,
        **asked_identity(args),
        **({"images": images_digest(images), "blank_images": args.blank_images} if images else {}),
        "stops": args.stop,
        "batch": args.batch,
        COUNT: len(points) * sum(len(prompt.turns) for prompt in prompts),
    }
    file = RecordFile(records_path(target, "decode", shard), identity, args.overwrite)

    # 2. Every context in every point, but for what is there already. The adapter comes last: without it first.
    evaluated = open_evaluated_model(choice, with_adapter=False)
    if args.sampler:
        with user_errors():
            evaluated.model.trained_sampler()  # before the first answer; it is kept
    processor = load_image_processor(choice.folder) if images else None
    settings = ContextSettings(decode, args.chat, args.thinking, processor, args.blank_images)
    contexts, decode = build_contexts(evaluated, prompts, settings)
    run = SweepRun(evaluated, decode, tuple(args.stop), args.batch)
    with evaluation_progress("decoding", len(points) * len(contexts)) as progress:
        adapted = False
        for point in points:
            if point.adapter and not adapted:
                assert choice.adapter is not None
                load_drafter_adapter(evaluated.model, choice.folder, choice.adapter)
                adapted = True
            waiting = [context for context in contexts if f"{point.name}|{context.key}" not in file.records]
            progress.advance(len(contexts) - len(waiting), point.name)
            for records in run.records(point, waiting):
                for record in records:
                    file.append(record)
                progress.advance(len(records), point.name)

    # 3. The figures.
    return finish_evaluation(target, "decode", shard, decode_table)


def read_modes(text: str) -> list[str]:
    """ "ar,diffusion" as a list; "all" as every mode. Raises: UserError."""
    modes = list(MODES) if text == "all" else text.split(",")
    unknown = [mode for mode in modes if mode not in MODES]
    require(not unknown, f"--mode {text}", f"{', '.join(MODES)}, all", "correct it")
    return modes

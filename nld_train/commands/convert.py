"""`nld convert`: the command line of conversion."""

import argparse
from pathlib import Path

from nld_train.config import require
from nld_train.vision_config import IMAGE_NAMES

DTYPES = ("bf16", "fp32")
LAYOUTS = ("nld", "ministral3")
RUNTIMES = ("transformers", "peft", "mlx-vlm", "vllm")
RAW = argparse.RawDescriptionHelpFormatter

EXPORT_HELP = """\
Write a training checkpoint as a Hugging Face folder, from any parallel layout, without a GPU.

  nld convert export out/demo/stage2_joint --to out/demo/hf
  nld convert export out/nld_8b/sft --to out/nld_8b/hf              trained on chat: generation ends with a turn
  nld convert export out/demo/stage2_joint --to out/try --step 100 --dtype fp32
  nld convert export out/demo/stage2_joint --to out/ar --as ministral3    for vLLM and others that decode left to right

One tensor at a time is in memory. The folder loads with AutoModel or AutoModelForCausalLM and trust_remote_code=True.
With --as ministral3 it has the same weights under the names of Ministral3ForCausalLM, and none of our code. Before it
takes its name it is compared with the checkpoint: all bits both ways, and the logits of its first two layers in every
mode that it has (`nld convert verify` runs as many layers as fit into memory).
"""
IMPORT_HELP = """\
Write a Hugging Face folder as a checkpoint that a recipe can start from.

  nld convert import models/Ministral-3-8B --to out/ministral_8b
  nld train nld_8b_stage1_ar init=out/ministral_8b

Reads the formats of `nld convert export`, and Ministral-3 with its vision tower (which --text-only leaves out) or as
text alone.
A tied model is untied: its head starts as a copy of the embedding. A head of its own is kept. FP8 weights are
multiplied by their scales and stored in bfloat16. Weights that are not finite are refused, and so are names and links
that lead out of the folder; a model in Hugging Face's cache is read as it lies there.
"""
VERIFY_HELP = """\
Compare a Hugging Face folder with the checkpoint it was exported from, or with what an installed runtime makes of it.

  nld convert verify out/demo/stage2_joint out/demo/hf
  nld convert verify out/demo/hf --runtime transformers
  nld convert verify out/demo/ar --runtime vllm --python serving/bin/python      an export with --as ministral3

With a checkpoint: bits both ways, shapes, rotary frequencies, and logits in AR and diffusion mode, one row of them
across the end of the original context. A model too large for the memory is run with as many layers as fit, and that is
said. With a runtime: greedy tokens and their log-probabilities against ours, in float32, the runtime in a process of
its own without the network. It must be installed, here or in the environment of --python.
"""


ADAPTER_HELP = """\
Write the adapter of a drafter's run as a PEFT folder, DIR/linear_spec_lora.

  nld convert adapter out/demo/drafter --to out/demo/hf        beside an export of the model that it drafts for
  nld convert export out/demo/drafter --to out/demo/drafted    that model and the adapter, both at once
  nld generate --model out/demo/hf --adapter out/demo/hf --mode self-spec --prompt "def main"

Any PEFT loads it: PeftModel.from_pretrained(model, DIR, subfolder="linear_spec_lora"). Beside an export it is run with
PEFT and compared with the training-time forward.
"""


SAMPLER_HELP = """\
Write the network of a sampler's run beside an export of the model that it judges: DIR/sampler.

  nld convert sampler out/demo/sampler --to out/demo/hf        the step with the best held-out AUC
  nld generate --model out/demo/hf --mode diffusion --sampler --prompt "def main"

The export must be of the model whose trajectories the sampler was trained on, which its embedding tells. The folder
loads as before; `generate(..., sampler=True)` of the model reads it.
"""


MERGE_HELP = """\
Put the vision tower of a Ministral-3 in front of a language model, as a checkpoint that a recipe can start from.

  nld convert merge-vision out/nld_8b/hf --vision models/Ministral-3-8B --to out/nld_8b_merged
  nld convert merge-vision out/nld_8b/sft --vision models/Ministral-3-8B --to out/nld_8b_merged \\
      --image-tokens "<SPECIAL_12>,<SPECIAL_13>,<SPECIAL_14>"

Nothing is computed: every bit of the language model is that of the first folder, every bit of tower and projector that
of the second. Both must have the same hidden size. The vocabulary stays as it is: the tokens of images are control
tokens that the tokenizer has already.
"""


def add_convert_parser(commands: argparse._SubParsersAction) -> None:
    convert = commands.add_parser("convert", help="Hugging Face checkpoints in and out")
    actions = convert.add_subparsers(title="actions", required=True, metavar="ACTION")
    add_export_parser(actions)
    add_import_parser(actions)
    add_adapter_parser(actions)
    add_sampler_export_parser(actions)
    add_merge_parser(actions)
    add_verify_parser(actions)


def add_merge_parser(actions: argparse._SubParsersAction) -> None:
    merge = actions.add_parser(
        "merge-vision",
        help="a language model and a vision tower -> checkpoint",
        description=MERGE_HELP,
        formatter_class=RAW,
    )
    merge.add_argument("text", type=Path, help="Hugging Face folder, or output folder, of the language model")
    merge.add_argument("--vision", type=Path, required=True, metavar="DIR", help="Ministral-3 folder with the tower")
    merge.add_argument("--to", type=Path, required=True, metavar="OUTPUT", help="folder to make: init= of a recipe")
    merge.add_argument(
        "--image-tokens",
        metavar="NAME,NAME,NAME",
        default=",".join(IMAGE_NAMES),
        help="names of the tokens of image cells, row breaks and ends in the language model's tokenizer "
        "(default: %(default)s)",
    )
    merge.add_argument("--overwrite", action="store_true", help="replace a merge that is there")
    merge.set_defaults(run=run_merge)


def add_adapter_parser(actions: argparse._SubParsersAction) -> None:
    adapter = actions.add_parser(
        "adapter", help="a drafter's adapter -> PEFT folder", description=ADAPTER_HELP, formatter_class=RAW
    )
    adapter.add_argument("output", type=Path, help="output folder of a drafter's run")
    adapter.add_argument("--to", type=Path, required=True, metavar="DIR", help="an export, or any folder")
    adapter.add_argument("--step", type=int, help="training step (default: the newest, which must be whole)")
    adapter.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the stored weights (default: %(default)s)")
    adapter.add_argument("--overwrite", action="store_true", help="replace an adapter that is there")
    adapter.set_defaults(run=run_adapter)


def add_sampler_export_parser(actions: argparse._SubParsersAction) -> None:
    sampler = actions.add_parser(
        "sampler", help="a sampler's network -> beside an export", description=SAMPLER_HELP, formatter_class=RAW
    )
    sampler.add_argument("output", type=Path, help="output folder of a sampler's run")
    sampler.add_argument("--to", type=Path, required=True, metavar="DIR", help="an export of the model that it judges")
    sampler.add_argument("--step", type=int, help="training step (default: the kept one with the best held-out AUC)")
    sampler.add_argument("--overwrite", action="store_true", help="replace a sampler that is there")
    sampler.set_defaults(run=run_sampler_export)


def add_export_parser(actions: argparse._SubParsersAction) -> None:
    export = actions.add_parser(
        "export", help="training checkpoint -> Hugging Face folder", description=EXPORT_HELP, formatter_class=RAW
    )
    export.add_argument("output", type=Path, help="output folder of `nld train` or `nld convert import`")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument(
        "--as",
        dest="layout",
        choices=LAYOUTS,
        default="nld",
        help="nld: all three ways of decoding; ministral3: left to right alone, as a class that every runtime has "
        "(default: %(default)s)",
    )
    export.add_argument("--step", type=int, help="training step (default: the newest, which must be whole)")
    export.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the stored weights (default: %(default)s)")
    export.add_argument("--tokenizer", type=Path, metavar="DIR", help="tokenizer folder (default: the run's own)")
    export.add_argument(
        "--chat",
        action="store_true",
        help="end of sequence is the end of a turn (<|im_end|>), and a chat template lies beside the weights; "
        "so it is anyway where the run was trained on conversations",
    )
    export.add_argument("--text-only", action="store_true", help="leave a vision tower out")
    export.add_argument("--shard-gb", type=float, metavar="GB", help="shards of at most this size (default: one file)")
    export.add_argument("--no-verify", action="store_true", help="do not compare with the checkpoint")
    export.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    export.set_defaults(run=run_export)


def add_import_parser(actions: argparse._SubParsersAction) -> None:
    load = actions.add_parser(
        "import", help="Hugging Face folder -> training checkpoint", description=IMPORT_HELP, formatter_class=RAW
    )
    load.add_argument("folder", type=Path, help="folder with config.json, safetensors and tokenizer")
    load.add_argument("--to", type=Path, required=True, metavar="OUTPUT", help="folder to make: init= of a recipe")
    load.add_argument("--pad-vocab-to", type=int, metavar="ROWS", help="zero rows behind the vocabulary")
    load.add_argument("--text-only", action="store_true", help="leave a vision tower out")
    load.add_argument("--no-verify", action="store_true", help="do not compare with the folder")
    load.add_argument("--overwrite", action="store_true", help="replace an import that is there")
    load.set_defaults(run=run_import)


def add_verify_parser(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser("verify", help="compare the two", description=VERIFY_HELP, formatter_class=RAW)
    check.add_argument("output", type=Path, help="output folder of the run; with --runtime the Hugging Face folder")
    check.add_argument("folder", type=Path, nargs="?", help="Hugging Face folder made from it")
    check.add_argument("--runtime", choices=RUNTIMES, help="program that decodes the folder")
    check.add_argument("--python", type=Path, metavar="PATH", help="Python that has the runtime (default: this one)")
    check.add_argument("--step", type=int, help="training step (default: the newest, which must be whole)")
    check.add_argument("--layers", type=int, help="layers to run for logits (default: all that fit into memory)")
    check.set_defaults(run=run_verify)


def run_export(args: argparse.Namespace) -> int:
    from nld_train.convert.actions import ExportRequest, export_checkpoint

    export_checkpoint(
        ExportRequest(
            output=args.output,
            target=args.to,
            step=args.step,
            dtype=args.dtype,
            tokenizer=args.tokenizer,
            chat=args.chat,
            shard_gb=args.shard_gb,
            verified=not args.no_verify,
            overwrite=args.overwrite,
            layout=args.layout,
            text_only=args.text_only,
        )
    )
    return 0


def run_adapter(args: argparse.Namespace) -> int:
    from nld_train.convert.actions import export_adapter

    export_adapter(args.output, args.to, args.step, args.dtype, args.overwrite)
    return 0


def run_sampler_export(args: argparse.Namespace) -> int:
    from nld_train.convert.sampler_export import export_sampler

    export_sampler(args.output, args.to, args.step, args.overwrite)
    return 0


def run_import(args: argparse.Namespace) -> int:
    from nld_train.convert.actions import import_folder

    import_folder(
        args.folder,
        args.to,
        args.pad_vocab_to,
        verified=not args.no_verify,
        overwrite=args.overwrite,
        text_only=args.text_only,
    )
    return 0


def run_merge(args: argparse.Namespace) -> int:
    from nld_train.convert.merge_vision import merge_vision

    merge_vision(args.text, args.vision, args.to, args.image_tokens, args.overwrite)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from nld_train.convert.actions import compare_runtime, verify_folder

    if args.runtime is not None:
        require(
            args.folder is None and args.step is None and args.layers is None,
            "--runtime with a run, --step or --layers",
            "`nld convert verify FOLDER --runtime NAME`",
            "leave them out",
        )
        compare_runtime(args.output, args.runtime, args.python)
        return 0
    require(
        args.folder is not None and args.python is None,
        "--python without --runtime" if args.python is not None else "one folder without --runtime",
        "OUTPUT and FOLDER, or FOLDER and --runtime",
        "name what the folder is compared with",
    )
    verify_folder(args.output, args.folder, args.step, args.layers)
    return 0

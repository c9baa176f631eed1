"""`nld generate`: text from a checkpoint folder, in any decoding mode."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nld_train.config import require
from nld_train.decode.modes import MODES
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.exit_status import FINISHED
from nld_train.fields import field_types, format_value, parse_value
from nld_train.files import check_output_file, write_text

if TYPE_CHECKING:  # they import numpy and torch
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from nld_train.data.tokenizer import TextTokenizer
    from nld_train.decode.result import Decoded
    from nld_train.decode.run import Prompts

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
HELP = {
    "max_new_tokens": "tokens to generate; whole blocks in diffusion mode",
    "block_length": "tokens denoised or drafted together",
    "temperature": "0 takes the most probable token",
    "top_p": "share of the probability that is drawn from",
    "seed": "of the random numbers at a temperature",
    "threshold": "diffusion: commit every token with this probability, and the best; none: the best alone",
    "forwards_per_block": "diffusion: denoise a block in so many forwards at most; none: as many as it has masks",
    "revise": "diffusion: mask the least certain quarter of a finished block again, so many times at most",
    "sampler": "diffusion: the trained sampler in the folder's sampler/ says how sure a token is, not its probability",
    "draft_threshold": "self-spec: a draft stops where no token has this probability",
    "ensemble_weight": "quadratic: weight of diffusion in the verifier; 0: AR alone",
    "eos_token_id": "token that ends the text, or several with commas between; none: the model's",
    "max_thinking_tokens": "tokens after which thinking is ended by force; none: never",
    "end_think_token_id": "token that ends thinking",
}
EXAMPLES = """\
Generate text from a checkpoint folder in any of its modes.

  nld generate --model out/demo/hf --mode ar --prompt "def main"
  nld generate --model out/demo/hf --mode diffusion --prompt "def main" --threshold 0.9
  nld generate --model out/demo/hf --mode self-spec --prompt-file prompts.txt      one prompt per line
  nld generate --model out/demo/hf --mode all --prompt "def main" --json answers.json
  nld generate --model out/demo/hf --adapter out/demo/hf --mode self-spec --prompt "def main"    a trained drafter
  echo "import os" | nld generate --model out/demo/hf --mode quadratic --block-length 8
  nld generate --model out/demo/hf --mode diffusion --chat --prompt "What is AR?"    one turn of a chat
  nld generate --model out/demo/hf --mode ar --prompt "def main" --stop "def " --eos-token-id 2,11    ends at any
  nld generate --model out/demo/hf --mode diffusion --prompt "def main(" --infill "): return 0" --infill-length 6
  nld generate --model out/demo/hf --mode diffusion --prompt "def main" --sampler --threshold 0.9    a trained sampler
  nld generate --model out/nld_8b_vlm/hf --mode self-spec --chat --image photo.jpg --prompt "What is this?"
"""
DENOISING = "diffusion"  # the mode that a trained sampler changes
SAMPLED = "places chosen by the trained sampler"
MODE_HELP = (
    "what one forward does. "
    + "; ".join(f"{name}: {mode.summary}" for name, mode in MODES.items())
    + "; all: every mode, one after the other"
)


def add_generate_parser(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate", help="generate text", description=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    generate.add_argument("--model", required=True, metavar="DIR", help="folder of `nld convert export`")
    generate.add_argument(
        "--adapter", metavar="DIR", help="self-spec drafts with it: linear_spec_lora/, or the folder that holds it"
    )
    generate.add_argument("--mode", required=True, choices=(*MODES, "all"), help=MODE_HELP)
    prompt = generate.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="one prompt per line (default: standard input, one prompt)"
    )
    generate.add_argument(
        "--chat",
        action="store_true",
        help="prompts are turns of a user, in the folder's chat template; ends with the turn",
    )
    generate.add_argument("--thinking", action="store_true", help="with --chat: the answer starts with thinking")
    generate.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="with --chat: the turn begins with this image, may be given several times; needs a vision tower",
    )
    generate.add_argument(
        "--infill", metavar="TEXT", help="diffusion: fill the gap between the prompt, which may be empty, and this text"
    )
    generate.add_argument("--infill-length", metavar="N", help="tokens of the gap at most: an end-of-text id ends it")
    generate.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: that of config.json")
    generate.add_argument("--device", choices=DEVICES, default="auto", help="auto: cuda where there is a GPU")
    generate.add_argument(
        "--json", type=Path, metavar="FILE", help="write the answers too: `nld report --answers FILE`"
    )
    generate.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="text that ends an answer, may be given several times",
    )
    for setting in fields(DecodeConfig):
        flag, text = "--" + setting.name.replace("_", "-"), HELP[setting.name]
        if setting.default is False:
            generate.add_argument(flag, action="store_const", const="true", help=text)
        else:
            generate.add_argument(flag, metavar="X", help=f"{text} (default: {format_value(setting.default)})")
    generate.set_defaults(run=run_generate)


def decode_settings(args: argparse.Namespace) -> DecodeConfig:
    """The settings that a command line gives, and the defaults of all others. Raises: UserError."""
    given = {name: text for name, text in vars(args).items() if name in HELP and text is not None}
    values: dict[str, Any] = {
        name: parse_value(name, field_types(DecodeConfig)[name], text) for name, text in given.items()
    }
    return DecodeConfig(**values)


def read_prompts(args: argparse.Namespace, stdin: TextIO) -> list[str]:
    """The prompts of a command line. Raises: UserError where there is none."""
    if args.prompt is not None:
        return [require_unicode(prompt, "--prompt") for prompt in args.prompt]
    if args.prompt_file is None:
        try:
            return [require_unicode(stdin.read(), "standard input").removesuffix("\n")]
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8: {error}", "UTF-8 text", "convert it") from error
    path = Path(args.prompt_file)
    if not path.is_file():
        raise UserError(f"no file {path}", "a text file with one prompt per line", "check --prompt-file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}", "UTF-8 text", "convert the file") from error
    # Lines end at line ends alone: str.splitlines cuts at U+2028 and others too, which may stand within a prompt.
    prompts = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt", "one prompt per line", "write one into it")
    return prompts


def require_unicode(text: str, origin: str) -> str:
    """The text itself. Raises: UserError where it holds bytes that are no UTF-8, which Python spells as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{origin} is not UTF-8: {text[:60]!r}", "UTF-8 text", "convert it") from error
    return text


def run_generate(args: argparse.Namespace) -> int:
    """Decode every prompt, one after the other, and print its text as it comes, then the figures."""
    # 1. The command line is checked before anything is imported that takes seconds.
    settings, prompts = decode_settings(args), read_prompts(args, sys.stdin)
    require(args.json is None or len(prompts) == 1, f"--json with {len(prompts)} prompts", "one prompt", "give one")
    if args.json is not None:
        check_output_file(args.json)
    stops = [require_unicode(stop, "--stop") for stop in args.stop]
    require(all(stops), "an empty --stop", "a text", "leave it out")
    require(args.chat or not args.thinking, "--thinking without --chat", "the two together", "add --chat")
    images = read_images(args)
    modes, infill_length = tuple(MODES) if args.mode == "all" else (args.mode,), gap_length(args)
    fits = not settings.sampler or DENOISING in modes
    require(fits, f"--sampler with --mode {args.mode}", f"{DENOISING}, or all", "leave it out: no other mode reads it")
    # 2. The model and its tokenizer.
    import torch
    from transformers.utils.logging import disable_progress_bar

    from nld_train.decode.infill import TextGap, infill_gaps, sight_text
    from nld_train.decode.load import draw_text_only, load_drafter_adapter, load_model, load_text_tokenizer, token_text
    from nld_train.decode.run import text_ends, user_errors
    from nld_train.decode.stop_texts import ends_with_stop

    disable_progress_bar()
    device = torch.device(choose_device(args.device, torch.cuda.is_available()))
    model = load_model(Path(args.model), choose_dtype(args.dtype), device)
    if settings.sampler:
        with user_errors():
            model.trained_sampler()  # before the first answer; it is kept
    if args.adapter is not None:
        load_drafter_adapter(model, Path(args.model), Path(args.adapter))
    tokenizer = load_text_tokenizer(Path(args.model), model.config.vocab_size)
    draw_text_only(model, tokenizer)
    encode: Callable[[str], NDArray[np.integer]] = tokenizer.encode
    if args.chat:
        encode, end_of_turn = chat_prompts(tokenizer, args.thinking)
        settings = with_end_of_turn(settings, end_of_turn)
    hidden = text_ends(model.config, settings)

    make_prompts = prompt_maker(args, tokenizer, encode, images)
    to_text = token_text(tokenizer)
    complete = ends_with_stop(to_text, stops) if stops else None

    # 3. Every prompt in every mode asked for.
    requests = [(prompt, mode) for prompt in prompts for mode in modes]
    answers = []
    for number, (prompt, mode) in enumerate(requests):
        if len(requests) > 1:
            print(f"\n--- {number + 1} of {len(requests)}, {mode}: {prompt}")
        stream = TextStream(to_text, hidden, stops, sys.stdout)
        if infill_length is None:
            result = MODES[mode].load_function()(model, make_prompts(prompt), settings, stream, complete)[0]
        else:
            gap = TextGap(encode(prompt).tolist(), tokenizer.encode(args.infill).tolist())
            result = infill_gaps(model, [gap], infill_length, settings, stream, complete)[0]
        stream.close()
        sampled = settings.sampler and mode == DENOISING
        print(answer_summary(mode, result, sampled), flush=True)
        if infill_length is not None:
            print(sight_text(gap, infill_length, settings.block_length, model.config.block_size), flush=True)
        answers.append(answer_record(mode, result, to_text, sampled))
    if args.json is not None:
        content: dict[str, object] = {"prompt": prompts[0], "chat": args.chat, "answers": answers}
        content |= {} if args.infill is None else {"text_behind": args.infill}
        content |= {"images": args.image} if args.image else {}
        write_text(args.json, json.dumps(content, indent=1) + "\n")
    return FINISHED


def read_images(args: argparse.Namespace) -> "list[Image]":
    """The images of a command line. Raises: UserError, also for a model that takes none."""
    if not args.image:
        return []
    require(args.chat, "--image without --chat", "the two together", "add --chat")
    require(args.infill is None, "--image with --infill", "one of the two", "leave one of them out")
    from nld_train.decode.image_prompt import check_image_folder, read_image_file

    check_image_folder(Path(args.model))
    return [read_image_file(Path(file)) for file in args.image]


def prompt_maker(
    args: argparse.Namespace,
    tokenizer: "TextTokenizer",
    encode: "Callable[[str], NDArray[np.integer]]",
    images: "list[Image]",
) -> "Callable[[str], Prompts]":
    """The function that makes what is decoded of a prompt's text. Raises: UserError."""
    if not images:
        return lambda text: [encode(text).tolist()]
    from nld_train.decode.image_prompt import image_chat_prompts, load_image_processor

    return image_chat_prompts(load_image_processor(Path(args.model)), tokenizer, images, args.thinking)


def gap_length(args: argparse.Namespace) -> int | None:
    """The tokens of the gap that a command line asks to fill; None: it asks for none. Raises: UserError."""
    if args.infill is None and args.infill_length is None:
        return None
    both = args.infill is not None and args.infill_length is not None
    require(both, "one of --infill and --infill-length", "the two together", "give the text and the length")
    require(args.mode == "diffusion", f"--infill with --mode {args.mode}", "diffusion alone", "use --mode diffusion")
    require(require_unicode(args.infill, "--infill") != "", "an empty --infill", "a text", "leave it out")
    new = args.max_new_tokens
    require(new is None, f"--max-new-tokens {new} with --infill", "--infill-length alone", "leave it out")
    length = parse_value("infill_length", int, args.infill_length)
    assert isinstance(length, int)
    return length


def chat_prompts(tokenizer: "TextTokenizer", thinking: bool) -> "tuple[Callable[[str], NDArray[np.integer]], int]":
    """The function that makes the prompt of a user's turn, [n] token ids, and the id of the token that ends the answer.

    thinking: whether the answer starts with thinking. Raises: UserError.
    """
    from nld_train.data.chat_encoder import load_chat_encoder
    from nld_train.data.chat_template import Message

    encoder = load_chat_encoder(tokenizer, thinking)
    return lambda text: encoder.prompt([Message("user", text)]), encoder.end_mark()


def with_end_of_turn(settings: DecodeConfig, end_of_turn: int) -> DecodeConfig:
    """The settings, with the end of a turn as the end of the text unless another is set."""
    return settings if settings.eos_token_id is not None else replace(settings, eos_token_id=(end_of_turn,))


def choose_device(name: str, has_gpu: bool) -> str:
    """The device of a command line. Raises: UserError for a GPU that is not there."""
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda without a GPU", "cpu on this machine", "use --device cpu")
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name


def choose_dtype(name: str) -> "torch.dtype | None":
    """The dtype of a command line; None: that of the folder."""
    import torch

    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


class TextStream:
    """Prints the text of a row's tokens as they come; the bytes of a character wait until it is complete, and what may
    become a stop text until it is another."""

    def __init__(
        self, to_text: Callable[[list[int]], str], hidden: Sequence[int], stops: Sequence[str], out: TextIO
    ) -> None:
        """hidden: ids that are not shown, those that end a text. stops: nothing is shown from one of them on."""
        from nld_train.data.tokenizer import UNFINISHED
        from nld_train.decode.stop_texts import before_stop, without_beginning_of_stop

        self.unfinished, self.before_stop, self.whole = UNFINISHED, before_stop, without_beginning_of_stop
        self.to_text, self.hidden, self.stops, self.out = to_text, hidden, stops, out
        self.ids: list[int] = []
        self.shown = 0

    def __call__(self, row: int, tokens: list[int]) -> None:
        self.ids += [token for token in tokens if token not in self.hidden]
        text = self.before_stop(self.to_text(self.ids), self.stops)
        self._show(self.whole(text.rstrip(self.unfinished), self.stops))

    def close(self) -> None:
        """Print what waits, and end the line."""
        self._show(self.before_stop(self.to_text(self.ids), self.stops))
        self.out.write("\n")

    def _show(self, text: str) -> None:
        self.out.write(text[self.shown :])
        self.out.flush()
        self.shown = max(self.shown, len(text))


def answer_record(
    mode: str, result: "Decoded", to_text: Callable[[list[int]], str], sampled: bool
) -> dict[str, object]:
    """One answer as `nld report --answers` reads it: the text of every token, its order of commitment, and figures.

    sampled: whether a trained sampler chose the places.
    """
    return {
        "mode": mode,
        "pieces": [to_text([token]) for token in result.ids],
        "order": result.order,
        "forwards": result.nfe.total,
        "detail": f"{MODES[mode].forwards_text(result.nfe)}{f'; {SAMPLED}' if sampled else ''}",
        "tokens_per_forward": result.tokens_per_forward,
        "tokens_per_second": result.tokens_per_second,
        "accepted_lengths": result.accepted_lengths,
    }


def answer_summary(mode: str, result: "Decoded", sampled: bool) -> str:
    """The figures of one answer, in one line. sampled: whether a trained sampler chose the places."""
    return (
        f"[{mode}] {len(result.ids)} tokens, NFE {result.nfe.total} ({MODES[mode].forwards_text(result.nfe)}), "
        f"{result.tokens_per_forward:.2f} tokens per forward, {result.tokens_per_second:.1f} tokens/s"
        f"{f'; {SAMPLED}' if sampled else ''}"
    )

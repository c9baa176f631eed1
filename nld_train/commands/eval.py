"""`nld eval`: how good a checkpoint is, how fast it decodes, and how far that is from the speed of light."""

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.commands.generate import DEVICES, DTYPES, choose_device, choose_dtype
from nld_train.errors import UserError, require
from nld_train.exit_status import FINISHED

if TYPE_CHECKING:  # it imports torch
    from nld_train.evaluation.evaluated_model import ModelChoice
    from nld_train.evaluation.prompt_file import EvalPrompt


HELP = """\
Measure a checkpoint: how likely it finds text, how it decodes in every mode, how fast an oracle could.

  nld eval likelihood out/demo/hf --data out/demo/data/almanac
  nld eval decode out/demo/hf --prompts prompts.jsonl --mode all --block 8,16 --threshold 0.5,0.7,0.9
  nld eval sol out/demo/hf --prompts prompts.jsonl --block 4,8,16
  nld eval tasks out/demo/hf --tasks nld_arithmetic,nld_cloze --mode self-spec
  nld eval page out/demo/hf-eval --html evaluation.html

Every evaluation writes into --output (default: FOLDER-eval): records one by one, a JSON file of the figures, and a
page. Killed, it goes on by the same command where it stopped. `merge` joins the shards of one (--shard I/N).
"""
PAGE = "report.html"
# In their order in the help; the parser of NAME is add_NAME_parser in nld_train/commands/eval_NAME.py.
EVALUATIONS = ("likelihood", "decode", "sol", "tasks", "merge", "page")


def add_eval_parser(commands: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("eval", help="evaluate a checkpoint", description=HELP, formatter_class=raw)
    evaluations = parser.add_subparsers(title="evaluations", required=True, metavar="WHAT", dest="what")
    for name in EVALUATIONS:
        module = import_module(f"nld_train.commands.eval_{name}")
        vars(module)[f"add_{name}_parser"](evaluations)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model is evaluated, and where the results go."""
    parser.add_argument("folder", metavar="FOLDER", help="an export, or the output folder of a run")
    parser.add_argument("--step", type=int, metavar="N", help="of a run (default: its newest checkpoint)")
    parser.add_argument("--adapter", metavar="DIR", help="a drafter's folder; self-spec drafts with it")
    parser.add_argument("--output", metavar="DIR", help="where results go (default: FOLDER-eval)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever --output holds")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the folder's)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: cuda where there is a GPU")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """What the model answers, and which share of it."""
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="JSON lines or Parquet: a prompt, or turns, a row"
    )
    parser.add_argument("--category", action="append", default=[], metavar="NAME", help="these alone; may be repeated")
    parser.add_argument("--chat", action="store_true", help="prompts are turns of a user, in the chat template")
    parser.add_argument("--thinking", action="store_true", help="with --chat: answers start with thinking")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="an answer (default: %(default)s)")
    parser.add_argument("--shard", metavar="I/N", help="every Nth prompt, from the Ith on; `nld eval merge` joins them")


def file_prompts(args: argparse.Namespace) -> "list[EvalPrompt]":
    """The prompts of a command line, of all shards. Raises: UserError."""
    from nld_train.evaluation.prompt_file import read_prompt_file

    require(args.chat or not args.thinking, "--thinking without --chat", "the two together", "add --chat")
    return read_prompt_file(Path(args.prompts), args.category)


def asked_prompts(args: argparse.Namespace) -> "list[EvalPrompt]":
    """The prompts of a command line, or its shard's share of them. Raises: UserError."""
    from nld_train.evaluation.results import parse_shard, shard_prompts

    prompts = shard_prompts(file_prompts(args), parse_shard(args.shard))
    require(len(prompts) > 0, f"--shard {args.shard} holds no prompt", "as many shards as prompts", "lower N")
    return prompts


def asked_identity(args: argparse.Namespace) -> dict[str, Any]:
    """What says which prompts were asked, and how. Raises: UserError."""
    from nld_train.evaluation.results import prompts_identity

    how = {name: vars(args)[name] for name in ("chat", "thinking", "max_new_tokens")}
    return {**prompts_identity(Path(args.prompts), args.category), **how}


def output_folder(args: argparse.Namespace) -> Path:
    """Where the results go: --output, or FOLDER-eval beside the folder."""
    folder = Path(args.folder)
    return folder.with_name(f"{folder.resolve().name}-eval") if args.output is None else Path(args.output)


def model_choice(args: argparse.Namespace) -> "ModelChoice":
    """The model that the command line names. Raises: UserError for a GPU that is not there."""
    import torch

    from nld_train.evaluation.evaluated_model import ModelChoice

    device = torch.device(choose_device(args.device, torch.cuda.is_available()))
    adapter = None if args.adapter is None else Path(args.adapter)
    return ModelChoice(Path(args.folder), args.step, adapter, choose_dtype(args.dtype), device)


def parse_numbers[N: (int, float)](option: str, text: str, kind: Callable[[str], N], low: N, high: N) -> list[N]:
    """ "8,16" as [8, 16], each once, in ascending order. Raises: UserError for what is no number from low to high."""
    allowed = f"numbers from {low} to {high} with commas between"
    try:
        numbers = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"{option} {text}", allowed, "correct it") from None
    if not all(low <= number <= high for number in numbers):
        raise UserError(f"{option} {text}", allowed, "correct it")
    return numbers


def finish_evaluation(
    folder: Path,
    kind: str,
    shard: tuple[int, int] | None,
    table: Callable[[Mapping[str, Any]], str] | None = None,
) -> int:
    """Write the figures, print their table where there is one, and write the page of the folder; a shard has its
    records alone. Returns: the exit status. Raises: UserError."""
    from nld_train.evaluation.results import records_path, write_figures
    from nld_train.report.evaluation_page import write_evaluation_page

    if shard is not None:
        print(f"wrote {records_path(folder, kind, shard)}; `nld eval merge {folder}` joins all shards")
        return FINISHED
    figures = write_figures(folder, kind)
    if table is not None:
        print(table(figures))
    page = folder / PAGE
    write_evaluation_page([folder], page)
    print(f"wrote {folder / f'{kind}.json'} and {page}")
    return FINISHED

"""`nld eval tasks`: lm-eval's tasks, and two of our own that need no network."""

import argparse
from pathlib import Path

from nld_train.commands.eval import add_model_options, finish_evaluation, model_choice, output_folder
from nld_train.commands.eval_decode import read_modes
from nld_train.decode.modes import MODES
from nld_train.errors import require

KIND = "tasks"
HELP = """\
Score tasks with lm-eval. Likelihood tasks, such as choices, are AR's in every mode; answers are generated in the modes
asked for, with tokens per forward beside the accuracy.

  nld eval tasks out/demo/hf --tasks nld_arithmetic,nld_cloze --mode all --block 8
  nld eval tasks out/demo/hf --tasks gsm8k,ifeval --mode self-spec --chat --limit 50

nld_cloze (which of four lines of Python's library comes next) and nld_arithmetic (sums below 200) are made on this
machine; the data of lm-eval's own tasks is downloaded once. Every answer is recorded: killed, the same command goes on.
lm-eval's own command line, with the model `nld`:

  python -m nld_train.evaluation.lm_eval_model --model nld --model_args pretrained=out/demo/hf,mode=self-spec \\
      --tasks nld_arithmetic --include_path nld_train/evaluation/tasks
"""


def add_tasks_parser(evaluations: argparse._SubParsersAction) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = evaluations.add_parser(KIND, help="lm-eval's tasks in every mode", description=HELP, formatter_class=raw)
    add_model_options(parser)
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help="tasks, groups or tags of lm-eval, or ours")
    parser.add_argument("--tasks-folder", metavar="DIR", help="of task files of your own, as lm-eval reads them")
    parser.add_argument("--mode", default="ar", metavar="M", help=f"{', '.join(MODES)}, several with commas, or all")
    parser.add_argument("--block", type=int, default=32, metavar="B", help="block length (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.9, metavar="P", help="of diffusion (default: %(default)s)")
    parser.add_argument("--chat", action="store_true", help="a request is a user's turn in the chat template")
    parser.add_argument("--limit", type=int, metavar="N", help="documents of each task (default: all)")
    parser.add_argument("--shots", type=int, metavar="N", help="examples before each request (default: the task's)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="requests at once (default: %(default)s)")
    parser.set_defaults(run=run_tasks)


def run_tasks(args: argparse.Namespace) -> int:
    """Score every task in every mode, and print the table."""
    modes, names = read_modes(args.mode), list(dict.fromkeys(args.tasks.split(",")))
    require(all(names), f"--tasks {args.tasks}", "names with commas between", "correct it")
    for option in ("limit", "batch"):
        value = vars(args)[option]
        require(value is None or value >= 1, f"--{option} {value}", "1 or more", "correct it")
    require(args.shots is None or args.shots >= 0, f"--shots {args.shots}", "0 or more", "correct it")

    from importlib.metadata import version

    from transformers.utils.logging import disable_progress_bar

    from nld_train.evaluation.evaluated_model import model_identity, open_evaluated_model
    from nld_train.evaluation.lm_eval_model import NldLM, TaskDecoding
    from nld_train.evaluation.record_file import RecordFile
    from nld_train.evaluation.results import records_path
    from nld_train.evaluation.task_figures import tasks_table
    from nld_train.evaluation.task_run import TaskLimits, open_tasks, score_task

    disable_progress_bar()
    ways = [TaskDecoding(mode, args.block, args.threshold, args.batch, args.chat) for mode in modes]
    manager = open_tasks(names, None if args.tasks_folder is None else Path(args.tasks_folder))
    choice, folder = model_choice(args), output_folder(args)
    identity = {
        "kind": KIND,
        **model_identity(choice),
        "block": args.block,
        "threshold": args.threshold,
        "chat": args.chat,
        "batch": args.batch,
        "limit": args.limit,
        "shots": args.shots,
        "lm_eval": version("lm-eval"),
    }
    evaluated = open_evaluated_model(choice)
    records = RecordFile(records_path(folder, KIND), identity, args.overwrite)
    for way in ways:
        model = NldLM(evaluated, way, records)
        for name in names:
            score_task(model, manager, name, TaskLimits(args.limit, args.shots), records)
    return finish_evaluation(folder, KIND, None, tasks_table)

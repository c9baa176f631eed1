"""A run's output folder, and what a start finds in it: nothing, its own checkpoint, or a foreign one.

OUTPUT/run.json          the frozen configuration
OUTPUT/model.json        the model's shape: what another run compares before it starts from these weights
OUTPUT/checkpoints/      Megatron's torch_dist checkpoints, iter_*, and a tracker file naming the newest; damaged_iter_*
OUTPUT/data_index/       which tokens make which row: remade where it is missing
OUTPUT/metrics.jsonl     one line per logged step and evaluation
OUTPUT/tensorboard/  OUTPUT/wandb/  OUTPUT/logs/
"""

import json
from dataclasses import fields
from pathlib import Path

from nld_train.checkpoint_files import check_contents, newest_step, saved_steps
from nld_train.config import DrafterConfig, RunConfig, require
from nld_train.data.staging import write_text
from nld_train.errors import UserError
from nld_train.model.adapter_files import CONFIG, WEIGHTS
from nld_train.recipe import from_json, to_json
from nld_train.report.history import METRICS
from nld_train.run_folder import check_same_model, checkpoints, model_record, step_folder
from nld_train.train.resume import keep_metrics, resume_step

# What a resumed run may not change: its weights, its rows and its objective would no longer be the same run's.
FIXED_ON_RESUME = ("model", "diffusion", "data", "init", "drafter")


def logs(output: str) -> Path:
    """The folder of log files, made where it is missing."""
    folder = Path(output) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stop_file(output: str) -> Path:
    """While a run sees this file, it stops: `nld train` makes it on a signal, and anybody else may."""
    return Path(output) / "stop"


def data_index(output: str) -> Path:
    """The folder of what is kept of reading the data."""
    return Path(output) / "data_index"


def open_output(run: RunConfig) -> int | None:
    """Prepare the output folder and return the step to resume at, or None for a fresh start.

    Raises: UserError when the folder holds another run's checkpoint, when none of its own is whole, or when the
    weights to start from are not there.
    """
    output = Path(run.output)
    if saved_steps(output):
        check_same_run(run, output)
    step = resume_step(output)
    # A drafter's checkpoints hold the adapter alone: every start reads the model itself from `init`.
    if run.init is not None and (step is None or run.drafter is not None):
        check_init(run)
    output.mkdir(parents=True, exist_ok=True)
    stop_file(run.output).unlink(missing_ok=True)
    keep_metrics(output / METRICS, step)
    write_text(output / "model.json", json.dumps(model_record(run.model), indent=2) + "\n")
    write_text(output / "run.json", to_json(run))
    return step


def check_same_run(run: RunConfig, output: Path) -> None:
    """Refuse to resume from a checkpoint of a run with other weights, rows or objective."""
    frozen = output / "run.json"
    require(
        frozen.is_file(),
        f"{checkpoints(output)} holds a checkpoint, but {frozen} is missing",
        "a folder that `nld train` wrote",
        "choose another output=, or start from it with init=",
    )
    before = from_json(frozen.read_text())
    for name in FIXED_ON_RESUME:
        changed = differences(getattr(before, name), getattr(run, name), name)
        require(
            not changed,
            f"{output} holds a checkpoint of another run: {'; '.join(changed)}",
            "resuming with the same " + ", ".join(FIXED_ON_RESUME),
            "choose another output=, or undo the change",
        )
    require(
        before.train.global_batch == run.train.global_batch,
        f"train.global_batch={run.train.global_batch}, the checkpoint in {output} has {before.train.global_batch}",
        "the same global batch: rows are numbered by it",
        "undo the change, or choose another output=",
    )


def init_checkpoint(init: str) -> Path:
    """Newest complete checkpoint of `init`: a run's output folder, or one that an import wrote. Raises: UserError."""
    folder = Path(init)
    step = newest_step(folder)
    if step is None:
        raise UserError(
            f"init={init!r}: no checkpoint in {checkpoints(folder)}",
            "the output folder of a finished run or of an import, or a Hugging Face folder",
            "run the stage before first, or correct init=",
        )
    return step_folder(folder, step)


def check_init(run: RunConfig) -> None:
    """Refuse weights that are missing, damaged, or of another shape. Raises: UserError."""
    assert run.init is not None
    folder = Path(run.init)
    newest = init_checkpoint(run.init)
    frozen = folder / "run.json"
    require(
        not frozen.is_file() or json.loads(frozen.read_text()).get("drafter") is None,
        f"init={run.init!r} is a drafter's run: its checkpoints hold an adapter and no model",
        "the folder of a model",
        "give the init of that run",
    )
    shape = folder / "model.json"
    require(shape.is_file(), f"init={run.init!r}: {shape} is missing", "a folder with model.json", "correct init=")
    check_same_model(run.init, json.loads(shape.read_text()), run.model)
    check_contents(newest)
    if run.drafter is not None and run.drafter.adapter is not None:
        check_adapter(run.drafter, Path(run.drafter.adapter))


def check_adapter(drafter: DrafterConfig, folder: Path) -> None:
    """Refuse an adapter to start from that is missing, or of another rank or scale. Raises: UserError."""
    said, weights = folder / CONFIG, folder / WEIGHTS
    there = said.is_file() and weights.is_file()
    require(there, f"drafter.adapter={str(folder)!r}", f"a PEFT folder with {CONFIG} and {WEIGHTS}", "correct the path")
    content = json.loads(said.read_text())
    found, wanted = (content.get("r"), content.get("lora_alpha")), (drafter.rank, drafter.alpha)
    require(
        found == wanted,
        f"{said} with r={found[0]} and lora_alpha={found[1]}",
        f"drafter.rank={wanted[0]} and drafter.alpha={wanted[1]:g}",
        "set drafter.rank and drafter.alpha to its numbers",
    )


def differences(before: object, now: object, name: str) -> list[str]:
    """What differs between two settings of one section, as text."""
    if before == now:
        return []
    if not hasattr(before, "__dataclass_fields__"):
        return [f"{name} was {before!r}, is {now!r}"]
    found = []
    for entry in fields(before):  # type: ignore[arg-type]
        found += differences(getattr(before, entry.name), getattr(now, entry.name), f"{name}.{entry.name}")
    return found

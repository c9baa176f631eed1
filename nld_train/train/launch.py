"""Start a run on this machine: checks at the door, then torchrun."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

from nld_train.config import RunConfig, require
from nld_train.data.manifest import check_prefix, parse_blend
from nld_train.train.folder import logs, open_output

logger = logging.getLogger(__name__)


def check_built(run: RunConfig) -> None:
    """Refuse what can be planned but not trained yet. Raises UserError."""
    require(
        run.parallel.context == 1,
        f"parallel.context={run.parallel.context}",
        "1: context parallelism of the doubled row is not built yet",
        "cut by parallel.tensor or parallel.pipeline",
    )


def check_data(run: RunConfig) -> None:
    """Refuse missing or damaged token files, and files of another tokenizer or vocabulary. Raises UserError."""
    for _, prefix in parse_blend(run.data.blend):
        vocabulary = check_prefix(prefix, run.data.tokenizer).vocab_size
        require(
            vocabulary <= run.model.vocab_size,
            f"{prefix} has ids of a vocabulary of {vocabulary:,}, the model has {run.model.vocab_size:,}",
            "at most the model's vocabulary",
            "set model.vocab_size, or prepare the data with the model's tokenizer",
        )


def check_ranks(run: RunConfig) -> None:
    """Refuse more ranks than this machine has GPUs or, without any, twice its cores. Raises UserError."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    room = gpus or 2 * len(os.sched_getaffinity(0))
    require(
        run.parallel.world_size <= room,
        f"{run.name} on {run.parallel.world_size} ranks",
        f"at most {room} on this machine ({gpus} GPUs)" if gpus else f"at most {room} on this machine (no GPU)",
        "give --nproc N, or train it on a cluster",
    )


def start(run: RunConfig) -> int:
    """Train with run.parallel.world_size processes here; returns the exit status. Raises UserError at the door."""
    check_built(run)
    check_ranks(run)
    check_data(run)
    step = open_output(run)
    if step is not None and step >= run.train.iterations:
        logger.info(
            "%s is finished: step %s of %s in %s", run.name, f"{step:,}", f"{run.train.iterations:,}", run.output
        )
        return 0
    if step is not None:
        logger.info("resuming %s at step %d from %s", run.name, step, run.output)
    command = torchrun_command(run.parallel.world_size, Path(run.output) / "run.json")
    launcher_log = logs(run.output) / "launcher.log"
    with launcher_log.open("a") as log:
        done = subprocess.run(command, env={**os.environ, **environment(run)}, stderr=log, check=False)
    if done.returncode:
        logger.error("%s failed with status %d; see %s", run.name, done.returncode, launcher_log)
    return done.returncode


def torchrun_command(ranks: int, frozen: Path) -> list[str]:
    """torchrun on this machine alone, on a free port."""
    elastic = ["--standalone", "--nnodes=1", f"--nproc-per-node={ranks}"]
    return [sys.executable, "-m", "torch.distributed.run", *elastic, "-m", "nld_train.train.run", str(frozen)]


def environment(run: RunConfig) -> dict[str, str]:
    """Variables of the ranks: W&B's mode, and quiet libraries."""
    variables = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if run.log.wandb != "disabled":
        variables["WANDB_MODE"] = wandb_mode(run)
    return variables


def wandb_mode(run: RunConfig) -> str:
    """ "auto" is online where wandb would find a login, offline elsewhere (`wandb sync` uploads later)."""
    if run.log.wandb != "auto":
        return run.log.wandb
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    logged_in = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text())
    return "online" if logged_in else "offline"

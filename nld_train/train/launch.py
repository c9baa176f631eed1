"""Start a run on this machine: checks at the door, then torchrun."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.data.manifest import check_prefix, parse_blend
from nld_train.train.folder import logs, open_output


def on_ranks(run: RunConfig, ranks: int) -> RunConfig:
    """The same run on this many ranks; refused when the layout or the batch does not fit."""
    return replace(run, parallel=replace(run.parallel, world_size=ranks))


def check_data(run: RunConfig) -> None:
    """Refuse missing or damaged token files, and files made with another tokenizer. Raises UserError."""
    for _, prefix in parse_blend(run.data.blend):
        check_prefix(prefix, run.data.tokenizer)


def start(run: RunConfig) -> int:
    """Train with run.parallel.world_size processes here; returns the exit status."""
    check_data(run)
    step = open_output(run)
    if step is not None:
        print(f"resuming {run.name} at step {step:,} from {run.output}", flush=True)
    command = torchrun_command(run.parallel.world_size, Path(run.output) / "run.json")
    launcher_log = logs(run.output) / "launcher.log"
    with launcher_log.open("a") as log:
        done = subprocess.run(command, env={**os.environ, **environment(run)}, stderr=log, check=False)
    if done.returncode:
        print(f"nld: {run.name} failed with status {done.returncode}; see {launcher_log}", file=sys.stderr)
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

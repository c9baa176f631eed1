"""Start a run on this machine: checks at the door, then torchrun."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nld_train.attention.choose import check_run as check_attention
from nld_train.checkpoint_files import complete_steps, newest_step, saved_step
from nld_train.config import RunConfig, require
from nld_train.data.chat_plan import open_plans
from nld_train.data.manifest import Manifest, check_prefix, parse_blend
from nld_train.job_record import record_end, record_start
from nld_train.train.folder import data_index, logs, open_output, stop_file
from nld_train.train.job import Job
from nld_train.train.nodes import ALONE, Nodes
from nld_train.train.signals import STOPPED

logger = logging.getLogger(__name__)

ONE_QUEUE = "CUDA_DEVICE_MAX_CONNECTIONS"


def check_data(run: RunConfig) -> None:
    """Refuse missing or damaged token files, of another kind, tokenizer or vocabulary. Raises UserError."""
    for _, prefix in parse_blend(run.data.blend):
        manifest = check_prefix(prefix, run.data.tokenizer)
        check_kind(prefix, manifest, run)
        vocabulary = manifest.vocab_size
        require(
            vocabulary <= run.model.vocab_size,
            f"{prefix} has ids of a vocabulary of {vocabulary:,}, the model has {run.model.vocab_size:,}",
            "at most the model's vocabulary",
            "set model.vocab_size, or prepare the data with the model's tokenizer",
        )


def check_kind(prefix: str, manifest: Manifest, run: RunConfig) -> None:
    """Refuse plain text where the run wants conversations, and the other way round. Raises UserError."""
    holds, wanted = ("conversations" if chat else "plain text" for chat in (manifest.chat is not None, run.data.chat))
    require(
        holds == wanted,
        f"{prefix} holds {holds}, {run.name} has data.chat={run.data.chat}",
        f"files of {wanted} alone, made by `nld data {'prepare-chat' if run.data.chat else 'prepare'}`",
        "set data.chat and diffusion.document_mask, or name other files",
    )


def check_ranks(run: RunConfig, nodes: Nodes = ALONE) -> None:
    """Refuse more ranks than this machine has GPUs or, without any, twice its cores. Raises UserError."""
    ranks = nodes.ranks(run)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    room = gpus or 2 * len(os.sched_getaffinity(0))
    require(
        ranks <= room,
        f"{run.name} on {ranks} ranks",
        f"at most {room} on this machine ({gpus} GPUs)" if gpus else f"at most {room} on this machine (no GPU)",
        "give --nproc N, or train it on a cluster with `nld launch`",
    )


def start(
    run: RunConfig,
    with_imported_init: Callable[[RunConfig], RunConfig],
    nodes: Nodes = ALONE,
    train: Callable[[RunConfig, Nodes], int] | None = None,
) -> int:
    """Train this node's share of the ranks; returns the exit status. Raises UserError at the door.

    `with_imported_init` turns an init that is a Hugging Face folder into one that training reads; `train` starts the
    ranks where `train_ranks` is not to.
    """
    check_ranks(run, nodes)
    check_attention(run, "cuda" if torch.cuda.is_available() else "cpu")
    check_data(run)
    if not nodes.first:
        return follow(run, nodes)
    run = with_imported_init(run)
    step = open_output(run)
    if step is not None and step >= run.train.iterations:
        logger.info(
            "%s is finished: step %s of %s in %s", run.name, f"{step:,}", f"{run.train.iterations:,}", run.output
        )
        return 0
    if step is not None:
        logger.info("resuming %s at step %d from %s", run.name, step, run.output)
    if run.data.chat:
        open_plans(run, data_index(run.output))
    record_start(Path(run.output), step or 0, nodes.labels, os.environ)
    status = (train or train_ranks)(run, nodes)
    record_end(Path(run.output), saved_step(Path(run.output)), status)
    return status


def follow(run: RunConfig, nodes: Nodes) -> int:
    """Train the share of a node that is not the first: that one alone prepares the output folder, and its ranks are met
    only afterwards."""
    if run.train.iterations in complete_steps(Path(run.output)):
        return 0
    return train_ranks(run, nodes)


def train_ranks(run: RunConfig, nodes: Nodes, command: Sequence[str] = ()) -> int:
    """torchrun on this node, or `command` in its place; returns the exit status of the run."""
    command = command or torchrun_command(run, nodes)
    job = Job(run.name, stop_file(run.output))
    log = logs(run.output) / ("launcher.log" if nodes.first else f"launcher_node{nodes.here}.log")
    status = job.run(command, {**os.environ, **environment(run)}, log)
    return status or ended(run)


def ended(run: RunConfig) -> int:
    """The exit status of a run whose ranks left in order: 0 at its last step, STOPPED before it."""
    step = newest_step(Path(run.output))
    if step == run.train.iterations:
        return 0
    logger.warning("%s stopped at step %s of %d, saved; the same command goes on", run.name, step, run.train.iterations)
    return STOPPED


def torchrun_command(run: RunConfig, nodes: Nodes) -> list[str]:
    """torchrun of this node's ranks, on the frozen configuration."""
    elastic = [*nodes.torchrun_options, f"--nproc-per-node={nodes.ranks(run)}"]
    frozen = str(Path(run.output) / "run.json")
    return [sys.executable, "-m", "nld_train.train.agent", *elastic, "-m", "nld_train.train.run", frozen]


def environment(run: RunConfig) -> dict[str, str]:
    """Variables of the ranks: W&B's mode, quiet libraries, and GPUs that start work in the order it is given."""
    variables = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if run.parallel.tensor > 1:
        # Megatron and Transformer Engine start a transfer before the product that hides it; with more queues than one
        # the product could fill the GPU first.
        variables[ONE_QUEUE] = os.environ.get(ONE_QUEUE, "1")
    if run.log.wandb != "disabled":
        variables["WANDB_MODE"] = wandb_mode(run)
    return variables


def wandb_mode(run: RunConfig) -> str:
    """ "auto" is online where wandb would find a login, offline elsewhere (`wandb sync` uploads later)."""
    if run.log.wandb != "auto":
        return run.log.wandb
    return "online" if wandb_login() else "offline"


def wandb_login() -> bool:
    """Whether wandb would find a login."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text())

"""How the ranks of a run are started on a node: torchrun's command line, and the variables that the ranks inherit."""

import os
import sys
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.doctor.machine import has_wandb_login
from nld_train.node_check.nodes import Nodes
from nld_train.run_folder.paths import RUN

ONE_QUEUE = "CUDA_DEVICE_MAX_CONNECTIONS"
# What `train.deterministic` needs of the libraries beside torch's own switch, which Megatron-Bridge sets: cuBLAS with
# workspaces of its own, Transformer Engine without sums of no order, NCCL with one algorithm whatever it measures.
IN_ORDER = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "NCCL_ALGO": "Ring"}
RANK_MODULE = "nld_train.train.rank"
TORCHRUN_MODULE = "nld_train.start.torchrun_main"


def torchrun_command(run: RunConfig, nodes: Nodes) -> list[str]:
    """The torchrun that starts this node's ranks; each rank reads the frozen configuration."""
    elastic = [*nodes.torchrun_options, f"--nproc-per-node={nodes.ranks(run)}"]
    return [sys.executable, "-m", TORCHRUN_MODULE, *elastic, "-m", RANK_MODULE, frozen_path(run)]


def rank_command(run: RunConfig) -> list[str]:
    """The command of one rank, as torchrun starts it."""
    return [sys.executable, "-m", RANK_MODULE, frozen_path(run)]


def frozen_path(run: RunConfig) -> str:
    """The file of the frozen configuration: the only argument of a rank."""
    return str(Path(run.output) / RUN)


def rank_environment(run: RunConfig) -> dict[str, str]:
    """The variables that the ranks get: W&B's mode, quiet libraries, GPUs that start work in the order it is given."""
    variables = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if run.parallel.tensor > 1:
        # Megatron and Transformer Engine start a transfer before the product that hides it; with more queues than one
        # the product could fill the GPU first.
        variables[ONE_QUEUE] = os.environ.get(ONE_QUEUE, "1")
    if run.train.deterministic:
        variables |= IN_ORDER
    if run.log.wandb != "disabled":
        variables["WANDB_MODE"] = _wandb_mode(run)
    return variables


def _wandb_mode(run: RunConfig) -> str:
    """wandb's mode for `log.wandb`: "auto" is online where wandb would find a login, offline elsewhere."""
    if run.log.wandb == "auto":
        return "online" if has_wandb_login() else "offline"
    return "online" if run.log.wandb == "required" else run.log.wandb

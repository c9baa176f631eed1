"""Makes this process the one rank of Megatron that `nld bench step` measures."""

import atexit
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nld_train.config import RunConfig
from nld_train.train import cpu_runtime, patches

if TYPE_CHECKING:
    from nld_train.bench.measure import Alternative


def prepare_megatron_steps(run: RunConfig, device: torch.device) -> "list[Alternative]":
    """The alternatives of bench/megatron_steps.py, in a process that is now Megatron's only rank."""
    _silence_libraries()
    cpu_runtime.install_cpu_runtime()
    patches.apply_patches()
    # Megatron binds names when it is imported: only now may it be.
    from nld_train.bench.megatron_steps import megatron_alternatives

    start_single_rank(device)
    return megatron_alternatives(run, device)


def _silence_libraries() -> None:
    """Keep the libraries quiet while they are imported: what is read here is the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def start_single_rank(device: torch.device) -> None:
    """Make a process group of this process alone, and Megatron's state for it."""
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
    atexit.register(torch.distributed.destroy_process_group)
    model_parallel_cuda_manual_seed(1)
    init_num_microbatches_calculator(0, None, 1, 1, 1)

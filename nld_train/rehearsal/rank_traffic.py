"""What one rank of a run sends in a step: the collectives that Megatron really calls, on fake tensors.

Nothing is sent: each call is counted as a ring would send it, under the process group that it is for. The step is the
largest there can be, and it has at most two micro-batches where nothing is pipelined (`rank_memory.run_fake_step`).
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nld_train.config import RunConfig
from nld_train.rehearsal.rank_memory import WEIGHTS, build_fake_rank, join_fake_groups, largest_batch, run_fake_step
from nld_train.rehearsal.stand_ins import fake_gpu, install_stand_ins
from nld_train.rehearsal.storage_meter import GATHERS, StorageMeter

# Operators by the argument that is the whole tensor, and how often a ring sends (n - 1) / n of it.
WHOLE = {
    "allgather_": (0, 1),
    "_allgather_base_": (0, 1),
    "allgather_into_tensor_coalesced_": (0, 1),
    "_reduce_scatter_base_": (1, 1),
    "reduce_scatter_tensor_coalesced_": (1, 1),
    "allreduce_": (0, 2),
    "allreduce_coalesced_": (0, 2),
    "broadcast_": (0, 1),
}
SILENT = {"recv_", "barrier"}  # what sends no bytes of its own


class TrafficMeter(TorchDispatchMode):
    """While this is entered, the bytes that this rank would send are counted by the name of the process group, and by
    whether they are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[tuple[str, bool]] = Counter()

    def __torch_dispatch__(self, function: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "c10d":
            self._count(function.overloadpacket.__name__, args)
        return function(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple) -> None:
        if name in SILENT:
            return
        boxed = next(each for each in args if isinstance(each, torch.ScriptObject))
        group = torch.distributed.ProcessGroup.unbox(boxed)
        if name == "send":
            self.sent[group.group_name, False] += _bytes_of(args[0])
            return
        argument, times = WHOLE[name]
        whole = times * _bytes_of(args[argument])
        self.sent[group.group_name, name in GATHERS] += whole * (group.size() - 1) / group.size()


def _bytes_of(nested: Any) -> int:
    return sum(each.nbytes for each in tree_leaves(nested) if isinstance(each, Tensor))


def count_traffic(run: RunConfig, rank: int) -> dict[str, float]:
    """Bytes that this rank sends in a step, by purpose as in `plan.network`. For a process of its own."""
    from megatron.core import parallel_state

    install_stand_ins()
    join_fake_groups(run, rank)
    batch, sending = largest_batch(run), TrafficMeter()
    with fake_gpu(), StorageMeter(WEIGHTS) as memory:
        fake = build_fake_rank(run, memory)
        # As Megatron-Bridge sets it up: gradients are summed in the last micro-batch alone.
        quiet = [chunk.no_sync for chunk in fake.model]
        fake.config.no_sync_func = quiet if len(quiet) > 1 else quiet[0]
        with sending:
            run_fake_step(run, fake, batch)
    purposes = {
        parallel_state.get_tensor_model_parallel_group().group_name: "tensor",
        parallel_state.get_context_parallel_group().group_name: "context",
        parallel_state.get_pipeline_model_parallel_group().group_name: "pipeline",
        parallel_state.get_data_parallel_group(with_context_parallel=True).group_name: "gradients",
    }
    found: Counter[str] = Counter()
    for (group, gathered), size in sending.sent.items():
        purpose = purposes.get(group, f"group {group}")
        # What is gathered over the replicas of a weight is the distributed optimizer's work.
        found["weights" if gathered and purpose == "gradients" else purpose] += size
    return {purpose: size for purpose, size in found.items() if size}

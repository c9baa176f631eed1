"""One rank of an all-reduce of the node check: every rank gives its number, and the sum is known beforehand.

Run as a module, this file is the process of one rank on a GPU; its argument is an AllReduceRank as JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore

ON_GPU, ON_CPU = 1 << 24, 1 << 16  # how many numbers are added up


@dataclass(frozen=True)
class AllReduceRank:
    """One rank's part in an all-reduce."""

    host: str  # where the store is
    port: int
    group: str  # name of the all-reduce in the store
    rank: int  # among the ranks of this all-reduce
    size: int  # how many ranks it has
    gpu: int | None  # number of its GPU; None: gloo on the CPU
    seconds: float  # how long it waits for the others

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def store(self) -> Store:
        return PrefixStore(self.group, TCPStore(self.host, self.port, is_master=False, timeout=self.timeout))


def reduce_on_cpu(task: AllReduceRank) -> None:
    """Make the all-reduce by gloo, which gives up in time by itself. Raises: RuntimeError where it fails."""
    group = ProcessGroupGloo(task.store(), task.rank, task.size, task.timeout)
    numbers = rank_numbers(task, ON_CPU, "cpu")
    group.allreduce([numbers]).wait()  # type: ignore[attr-defined]  # torch's stubs leave it out
    check_sum(task, numbers)


def reduce_on_gpu(task: AllReduceRank) -> None:
    """Make the all-reduce by NCCL. It needs a process of its own, because a broken link may leave it hanging.

    Raises: RuntimeError where it fails.
    """
    torch.cuda.set_device(task.gpu)
    torch.distributed.init_process_group(
        "nccl", store=task.store(), rank=task.rank, world_size=task.size, timeout=task.timeout
    )
    numbers = rank_numbers(task, ON_GPU, f"cuda:{task.gpu}")
    torch.distributed.all_reduce(numbers)
    check_sum(task, numbers)
    torch.distributed.destroy_process_group()


def rank_numbers(task: AllReduceRank, count: int, device: str) -> torch.Tensor:
    """[count] float32: this rank's number, from 1, `count` times."""
    return torch.full((count,), float(task.rank + 1), device=device)


def check_sum(task: AllReduceRank, numbers: torch.Tensor) -> None:
    """Compare the sums, [count], with the one that must come out. Raises: RuntimeError where one differs."""
    expected = task.size * (task.size + 1) / 2
    wrong = int((numbers != expected).sum().item())
    if wrong:
        raise RuntimeError(f"{wrong:,} of {numbers.numel():,} sums are not {expected:g}")


if __name__ == "__main__":
    reduce_on_gpu(AllReduceRank(**json.loads(sys.argv[1])))

"""One rank of the all-reduce of the node check."""

import json
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore

ON_GPU, ON_CPU = 1 << 24, 1 << 16  # numbers that each rank adds


@dataclass(frozen=True)
class AllReduceRank:
    """What a rank is to do."""

    host: str  # where the store is
    port: int
    group: str  # name of those who add up together
    rank: int
    size: int
    gpu: int | None  # None: gloo on the CPU
    seconds: float  # that it waits for the others

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.seconds)

    def store(self) -> Store:
        return PrefixStore(self.group, TCPStore(self.host, self.port, is_master=False, timeout=self.timeout))


def reduce_on_cpu(task: AllReduceRank) -> None:
    """Add up by gloo, which gives up in time by itself. Raises: RuntimeError."""
    group = ProcessGroupGloo(task.store(), task.rank, task.size, task.timeout)
    numbers = rank_numbers(task, ON_CPU, "cpu")
    group.allreduce([numbers]).wait()  # type: ignore[attr-defined]  # torch's stubs leave it out
    check_sum(task, numbers)


def reduce_on_gpu(task: AllReduceRank) -> None:
    """Add up by NCCL, in a process of its own: a broken link may leave it hanging. Raises: RuntimeError."""
    torch.cuda.set_device(task.gpu)
    torch.distributed.init_process_group(
        "nccl", store=task.store(), rank=task.rank, world_size=task.size, timeout=task.timeout
    )
    numbers = rank_numbers(task, ON_GPU, f"cuda:{task.gpu}")
    torch.distributed.all_reduce(numbers)
    check_sum(task, numbers)
    torch.distributed.destroy_process_group()


def rank_numbers(task: AllReduceRank, count: int, device: str) -> torch.Tensor:
    """[count] This rank's number, from 1."""
    return torch.full((count,), float(task.rank + 1), device=device)


def check_sum(task: AllReduceRank, numbers: torch.Tensor) -> None:
    """Compare with the sum that must come out. Raises: RuntimeError."""
    expected = task.size * (task.size + 1) / 2
    wrong = int((numbers != expected).sum().item())
    if wrong:
        raise RuntimeError(f"{wrong:,} of {numbers.numel():,} sums are not {expected:g}")


if __name__ == "__main__":
    reduce_on_gpu(AllReduceRank(**json.loads(sys.argv[1])))

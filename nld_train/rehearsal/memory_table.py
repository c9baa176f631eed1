"""The plan's memory beside that of a simulated rank: one table for any number of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from nld_train.config import RunConfig
from nld_train.plan.memory import StageMemory, worst_stage
from nld_train.rehearsal.fake_ranks import RankQuestion, ask_ranks, fullest_rank

GB = 1e9  # bytes
KEPT = ("weights", "gradients", "optimizer", "activations")  # of the plan and of the simulation; the rest is transient
HEAD = (
    "| recipe | plan GB | simulated GB | ratio | weights | gradients | optimizer | activations | transient |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class MemoryComparison:
    """What the plan says of the fullest GPU of a run, and what one step of it allocates on fake tensors."""

    name: str
    planned: StageMemory
    simulated: dict[str, int]  # bytes by category, at the peak

    @property
    def ratio(self) -> float:
        """Simulated / planned, of the sums."""
        return sum(self.simulated.values()) / self.planned.total

    @property
    def transient(self) -> int:
        """Bytes at the peak beside what is kept: LM head, a layer's backward, what is gathered from other ranks."""
        return sum(size for category, size in self.simulated.items() if category not in KEPT)


def compare_memory(runs: Sequence[RunConfig]) -> list[MemoryComparison]:
    """Simulate a step of every run, one after another, in a process of their own: some 20 s, and 10 to 60 s each."""
    peaks = ask_ranks([RankQuestion(run, fullest_rank(run), "memory") for run in runs])
    return [MemoryComparison(run.name, worst_stage(run), peak) for run, peak in zip(runs, peaks, strict=True)]


def memory_markdown(found: Sequence[MemoryComparison]) -> str:
    """The table as Markdown; every part is "plan / simulated", in GB."""
    return "\n".join([*HEAD, *(_table_row(each) for each in found)])


def _table_row(each: MemoryComparison) -> str:
    parts = {
        **{kept: (vars(each.planned)[kept], each.simulated.get(kept, 0)) for kept in KEPT},
        "transient": (each.planned.transient, each.transient),
    }
    shown = [f"{planned / GB:.2f} / {simulated / GB:.2f}" for planned, simulated in parts.values()]
    total = sum(each.simulated.values())
    cells = [each.name, f"{each.planned.total / GB:.2f}", f"{total / GB:.2f}", f"{each.ratio:.3f}", *shown]
    return f"| {' | '.join(cells)} |"

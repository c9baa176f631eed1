"""What a run's output folder says of the run, read back: metrics.jsonl and the frozen configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nld_train.config import RunConfig
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.metrics import KINDS, Entry, entries_of_kind, read_metrics
from nld_train.run_folder.paths import METRICS


@dataclass(frozen=True)
class Stage:
    """One run as its folder records it. Entries ascend in step; of a step that a resumed run repeated, the last one."""

    output: Path
    run: RunConfig
    train: Sequence[Entry]
    validation: Sequence[Entry]

    @property
    def steps(self) -> int:
        """Optimizer steps the records reach to."""
        return int(max(entry["step"] for entry in (*self.train, *self.validation)))

    @property
    def tokens(self) -> int:
        """Tokens seen in those steps."""
        return self.steps * self.run.train.global_batch * self.run.data.sequence_length

    @property
    def on_answers(self) -> bool:
        """Whether losses count the answers of conversations alone, or a sampler's judgements: not to be compared with
        those on text."""
        return self.run.data.chat or self.run.sampler is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged intervals, evaluations left out; None before the first one."""
        rates = [entry["tokens/s"] for entry in self.train if "tokens/s" in entry]
        return median(rates) if rates else None


@dataclass(frozen=True)
class StageLosses:
    """Validation losses of a stage, in nats per token: at its first and at its last evaluation. None: not measured."""

    ar_start: float | None
    ar_end: float | None
    diffusion_start: float | None
    diffusion_end: float | None

    def gain(self, unigram_entropy: float | None) -> float | None:
        """How far the AR loss ends below the unigram entropy, in nats per token."""
        return None if unigram_entropy is None or self.ar_end is None else unigram_entropy - self.ar_end

    @property
    def diffusion_drop(self) -> float | None:
        """How far the diffusion loss came down over the stage, in nats per token."""
        if self.diffusion_start is None or self.diffusion_end is None:
            return None
        return self.diffusion_start - self.diffusion_end


def stage_losses(stage: Stage) -> StageLosses:
    """Start and end of both terms over the stage, on the validation rows."""
    return StageLosses(
        *first_and_last_value(stage.validation, "AR loss"), *first_and_last_value(stage.validation, "diffusion loss")
    )


def first_and_last_value(entries: Sequence[Entry], name: str) -> tuple[float | None, float | None]:
    """First and last value of `name`; (None, None) where no entry has it."""
    values = [entry[name] for entry in entries if name in entry]
    return (values[0], values[-1]) if values else (None, None)


def read_stages(outputs: Sequence[Path]) -> list[Stage]:
    """The runs of these output folders, in this order. Raises UserError."""
    return [read_stage(output) for output in outputs]


def read_stage(output: Path) -> Stage:
    """The run of an output folder.

    Raises: UserError when run.json or metrics.jsonl is missing, empty, or not what `nld train` writes.
    """
    run = read_frozen_run(output)
    entries = read_metrics(output / METRICS)
    train, validation = (entries_of_kind(entries, kind) for kind in KINDS)
    return Stage(output, run, train, validation)

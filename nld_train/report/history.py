"""What a run's output folder says of the run, read back: metrics.jsonl and the frozen configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nld_train.config import RunConfig, require
from nld_train.errors import UserError
from nld_train.recipe import from_json

METRICS = "metrics.jsonl"
KINDS = ("train", "validation")
SPIKE = "spike"  # a step whose gradient norm stood out

Entry = Mapping[str, float]  # "step", and the values by their names in metrics.jsonl


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
        """Whether losses count the answers of conversations alone: not to be compared with those on text."""
        return self.run.data.chat

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged intervals, evaluations left out; None before the first one."""
        rates = [entry["tokens/s"] for entry in self.train if "tokens/s" in entry]
        return median(rates) if rates else None


@dataclass(frozen=True)
class Losses:
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


def losses(stage: Stage) -> Losses:
    """Start and end of both terms over the stage, on the validation rows."""
    return Losses(*ends(stage.validation, "AR loss"), *ends(stage.validation, "diffusion loss"))


def ends(entries: Sequence[Entry], name: str) -> tuple[float | None, float | None]:
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
    frozen = output / "run.json"
    require(frozen.is_file(), f"no file {frozen}", "the output folder of `nld train`", "name the folder of a run")
    entries = read_entries(output / METRICS)
    train, validation = (of_kind(entries, kind) for kind in KINDS)
    return Stage(output, from_json(frozen.read_text(encoding="utf-8")), train, validation)


def read_entries(path: Path) -> list[dict]:
    """The lines of metrics.jsonl as written. Raises UserError where it is missing, empty or broken, naming the line."""
    require(path.is_file(), f"no file {path}", "a run that has trained", "train it with `nld train` first")
    entries = [
        parse_entry(line, f"{path} line {number}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]
    require(len(entries) > 0, f"{path} is empty", "at least one logged step", "let the run reach its first logged step")
    return entries


def parse_entry(line: str, where: str) -> dict:
    """One line as a dict with "kind", "step" and numbers. Raises UserError."""
    allowed, do = '{"step": ..., "kind": "train" or "validation", name: number}', "take the line away"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}", allowed, do) from None
    require(isinstance(entry, dict) and entry.get("kind") in (*KINDS, SPIKE), f"{where}: {line[:60]}", allowed, do)
    numbers = [value for name, value in entry.items() if name != "kind"]
    numeric = all(isinstance(value, int | float) for value in numbers)
    require(numeric and "step" in entry, f"{where}: {line[:60]}", allowed, do)
    return entry


def of_kind(entries: Sequence[dict], kind: str) -> list[Entry]:
    """The entries of a kind, ascending in step; a step that was written twice counts as it was written last."""
    last = {entry["step"]: entry for entry in entries if entry["kind"] == kind}
    return [{name: value for name, value in last[step].items() if name != "kind"} for step in sorted(last)]

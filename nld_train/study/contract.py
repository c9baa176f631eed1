"""What a study is: arms that differ in one choice, figures of each, and claims that say which arm is the better one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from nld_train.config import RunConfig
from nld_train.study.miniature import Miniature

# Which line of the last run's metrics an arm's figures are: its first or last evaluation, or all its steps.
FIRST: Final = "first evaluation"
LAST: Final = "last evaluation"
STEPS: Final = "all steps"
Reading = Literal["first evaluation", "last evaluation", "all steps"]


@dataclass(frozen=True)
class StudyFigure:
    """A number that every arm of a study has for each seed."""

    name: str  # as metrics.jsonl and the table name it
    higher_is_better: bool


AR_LOSS = StudyFigure("AR loss", higher_is_better=False)
DIFFUSION_LOSS = StudyFigure("diffusion loss", higher_is_better=False)
ACCEPTED_LENGTH = StudyFigure("accepted length", higher_is_better=True)
EXPECTED_LENGTH = StudyFigure("expected length", higher_is_better=True)
PER_FORWARD = StudyFigure("tokens per forward", higher_is_better=True)
SQUARED_NORM = StudyFigure("squared gradient norm", higher_is_better=False)
USUAL_NORM = StudyFigure("its median", higher_is_better=False)


@dataclass(frozen=True)
class StudyArm:
    """One choice."""

    name: str
    # The runs of one seed, each from the weights of the one before; the last one's metrics hold the figures.
    runs: Callable[[Miniature, int], Sequence[RunConfig]]
    reading: Reading = FIRST


@dataclass(frozen=True)
class StudyClaim:
    """The better arm has the better figure."""

    figure: StudyFigure
    better: str  # an arm
    worse: str  # another one
    paper: str  # the published figures, worse -> better; "" where nobody has published any


@dataclass(frozen=True)
class Study:
    """Compares arms by figures."""

    name: str
    question: str
    arms: Sequence[StudyArm]
    figures: Sequence[StudyFigure]
    claims: Sequence[StudyClaim]
    note: str = ""  # how the figures are to be read, where their names do not say it

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names), f"{self.name}: two arms of one name"
        for claim in self.claims:
            assert {claim.better, claim.worse} <= set(names), f"{self.name}: {claim} names no arm"
            assert claim.figure in self.figures, f"{self.name}: {claim} has no figure"

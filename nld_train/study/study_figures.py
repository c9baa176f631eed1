"""The figures of a study's arms, from the metrics of their runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from nld_train.config import RunConfig, require
from nld_train.run_folder.metrics import read_metrics
from nld_train.run_folder.paths import METRICS
from nld_train.study.contract import FIRST, SQUARED_NORM, STEPS, USUAL_NORM, Reading, Study, StudyClaim
from nld_train.study.significance import MeanError, PairedDifference, mean_and_error, paired_difference


@dataclass(frozen=True)
class StudyResult:
    """What a study found, of every arm, figure and seed."""

    study: Study
    steps: int
    seeds: Sequence[int]
    values: dict[str, dict[str, list[float]]]  # arm -> figure -> one number a seed, in the order of `seeds`

    def summary(self, arm: str, figure: str) -> MeanError:
        """Mean and standard error of a figure of an arm."""
        return mean_and_error(self.values[arm][figure])

    def tested(self, claim: StudyClaim) -> PairedDifference:
        """The difference that a claim is about, positive where it holds."""
        name = claim.figure.name
        better, worse = self.values[claim.better][name], self.values[claim.worse][name]
        return paired_difference(better, worse, claim.figure.higher_is_better)


def arm_figures(run: RunConfig, reading: Reading) -> dict[str, float]:
    """The figures of one arm and seed, from its last run. Raises: UserError where its metrics lack them."""
    entries = read_metrics(Path(run.output) / METRICS)
    if reading == STEPS:
        squares = [entry["gradient norm"] ** 2 for entry in entries if entry["kind"] == "train"]
        return {SQUARED_NORM.name: fmean(squares), USUAL_NORM.name: median(squares)}
    evaluations = [entry for entry in entries if entry["kind"] == "validation"]
    require(len(evaluations) > 0, f"no evaluation in {run.output}", "one at least", "remove the folder and go on")
    return dict(evaluations[0 if reading == FIRST else -1])


def collect_result(study: Study, runs: dict[str, list[RunConfig]], steps: int, seeds: Sequence[int]) -> StudyResult:
    """Read the figures of all arms. runs: arm -> its last run of every seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for arm in study.arms:
        found = [arm_figures(run, arm.reading) for run in runs[arm.name]]
        values[arm.name] = {figure.name: [one[figure.name] for one in found] for figure in study.figures}
    return StudyResult(study, steps, seeds, values)

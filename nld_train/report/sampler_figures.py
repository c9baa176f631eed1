"""What evaluations say of a sampler: how well it ranks predictions beside the model's own confidence, and whether its
probabilities are true."""

from collections.abc import Sequence
from html import escape

from nld_train.objectives.sampler import AUC, BAND, BAND_FIGURES, CONFIDENCE_AUC
from nld_train.report.chart import Chart, ChartLine, ChartPoint, StageSpan, chart_svg
from nld_train.report.history import Stage
from nld_train.run_folder.early_end import best_evaluation
from nld_train.run_folder.metrics import Entry

NOTE = (
    "AUC: the probability that a right prediction is given a higher score than a wrong one, over all masked positions "
    "of all steps of held-out prompts' trajectories, those behind the end of a text left out; 0.5 is chance. "
    "Confidence: the probability of the prediction itself, which block diffusion compares with its threshold. "
    "Calibration: in ten bands of the probability that the sampler says, the share of predictions that were right; on "
    "the dashed line it is as said."
)


def calibration(entry: Entry) -> list[tuple[int, float, float, float]]:
    """(number, count, mean of what was said, share right) of every band of an evaluation that holds a position."""
    numbers = sorted({int(name.removeprefix(BAND).split()[0]) for name in entry if name.startswith(BAND)})
    found = [(number, *(entry.get(f"{BAND}{number} {name}") for name in BAND_FIGURES)) for number in numbers]
    return [(number, count, said, right) for number, count, said, right in found if count and said is not None]  # type: ignore[misc]


def calibration_error(entry: Entry) -> float:
    """The mean distance between what was said and what was right, weighed by the positions of each band."""
    bands = calibration(entry)
    return sum(count * abs(said - right) for _, count, said, right in bands) / sum(count for _, count, _, _ in bands)


def sampler_evaluations(stage: Stage) -> list[Entry]:
    """The evaluations of a sampler's run; none of another."""
    return [entry for entry in stage.validation if AUC in entry]


def sampler_text(stages: Sequence[Stage]) -> str:
    """What the terminal shows of the samplers' runs; empty where there is none."""
    return "".join(f"\n{sampler_sentence(stage)}\n" for stage in stages if sampler_evaluations(stage))


def sampler_sentence(stage: Stage) -> str:
    """ "tiny_sampler: held-out AUC 0.941 at step 700 (its best), the confidence's 0.702; calibration error 0.012" """
    best = best_evaluation(sampler_evaluations(stage), AUC)
    return (
        f"{stage.run.name}: held-out AUC {best[AUC]:.3f} at step {best['step']:,.0f} (its best), the confidence's "
        f"{best[CONFIDENCE_AUC]:.3f}; calibration error {calibration_error(best):.3f}"
    )


def sampler_section(stages: Sequence[Stage]) -> str:
    """The page's part on the samplers' runs; empty where there is none."""
    shown = [_figures(stage) for stage in stages if sampler_evaluations(stage)]
    return f'<h2>Sampler</h2>{"".join(shown)}<p class="note">{escape(NOTE)}</p>' if shown else ""


def _figures(stage: Stage) -> str:
    """AUC over the steps, and the calibration of the best evaluation."""
    evaluated = sampler_evaluations(stage)
    curves = [
        ChartLine(
            name,
            style,
            [ChartPoint(each["step"], each[key], f"step {each['step']:,.0f}: {each[key]:.4f}") for each in evaluated],
            marked=True,
        )
        for name, style, key in (("sampler", "diffusion", AUC), ("confidence", "plain", CONFIDENCE_AUC))
    ]
    bands = calibration(best_evaluation(evaluated, AUC))
    told = [
        ChartPoint(said, right, f"said {said:.3f}, right {right:.3f}, {count:,.0f} positions")
        for _, count, said, right in bands
    ]
    true = ChartLine("as said", "plain", [ChartPoint(0, 0, "0"), ChartPoint(1, 1, "1")])
    charts = [
        _chart("AUC on held-out prompts", "", curves, max(each["step"] for each in evaluated), "step"),
        _chart("Calibration", "share right", [true, ChartLine("sampler", "diffusion", told, marked=True)], 1, "said"),
    ]
    drawn = "".join(f"<div>{chart_svg(chart)}</div>" for chart in charts)
    return f'<p>{escape(sampler_sentence(stage))}</p><div class="small">{drawn}</div>'


def _chart(title: str, unit: str, lines: Sequence[ChartLine], end: float, across: str) -> Chart:
    axis = [StageSpan(0, max(end, 1), "")]
    return Chart(title, unit, lines, axis, None, width=500, height=260, top=68, right=60, across=across)

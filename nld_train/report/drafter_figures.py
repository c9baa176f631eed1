"""What evaluations say of drafts, a joint stage's and a drafter's: how many the verifier keeps, before and after
training, and place by place.

Every whole block of a validation row is one held-out prompt, the text before it, for which it is drafted greedily. A
drafter's evaluation drafts all rows, a joint stage's as many as train.eval_decode says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nld_train.loss.objective import ACCEPTED, DRAFTER_LOSS, EXPECTED, KEPT, ROUND_FORWARDS
from nld_train.report.chart import Chart, ChartLine, ChartPoint, StageSpan, chart_svg
from nld_train.report.history import Stage
from nld_train.run_folder.metrics import Entry

NOTE = (
    "Accepted length: tokens that a round of drafting and verifying adds, the verifier's own one included; a round is "
    "two forwards, and the prefill is not counted. Every whole block of the validation rows is a held-out prompt; of a "
    "joint stage those of the first rows alone (train.eval_decode). "
    "Kept: share of the blocks whose drafts up to this place were all accepted. "
    "Expected length: the accepted length in expectation, were all drafts sampled at temperature 1, estimated behind "
    "the greedy drafts. It and the loss are of a drafter alone, and losses of different names do not compare."
)


@dataclass(frozen=True)
class DraftFigures:
    """One evaluation."""

    accepted: float  # tokens a round
    kept: list[float]  # by place in the block, from the first draft on

    @property
    def tokens_per_forward(self) -> float:
        return self.accepted / ROUND_FORWARDS


def draft_figures(entry: Entry) -> DraftFigures:
    """The drafts of one evaluation in metrics.jsonl."""
    places = sorted(int(name.removeprefix(KEPT)) for name in entry if name.startswith(KEPT))
    return DraftFigures(entry[ACCEPTED], [entry[f"{KEPT}{place}"] for place in places])


def first_and_last_drafts(stage: Stage) -> tuple[DraftFigures, DraftFigures] | None:
    """The drafts at the first and at the last evaluation of a run that drafted; None where none did."""
    evaluated = [draft_figures(entry) for entry in stage.validation if ACCEPTED in entry]
    return (evaluated[0], evaluated[-1]) if evaluated else None


def drafter_text(stages: Sequence[Stage]) -> str:
    """What the terminal shows of the runs that drafted; empty where there is none."""
    return "".join(f"{line}\n" for stage in stages for line in _lines(stage))


def _lines(stage: Stage) -> list[str]:
    found = first_and_last_drafts(stage)
    if found is None:
        return []
    shares = [f"{name:<7}" + "".join(f"{share:7.3f}" for share in each.kept) for name, each in _named(found)]
    places = "place  " + "".join(f"{place:7d}" for place in range(1, len(found[0].kept) + 1))
    return [
        "",
        drafter_sentence(stage, *found),
        *filter(None, [loss_sentence(stage)]),
        f"share of the blocks kept up to each place of {stage.run.name}:",
        places,
        *shares,
    ]


def _named(found: tuple[DraftFigures, DraftFigures]) -> list[tuple[str, DraftFigures]]:
    return [("before", found[0]), ("after", found[1])]


def drafter_sentence(stage: Stage, before: DraftFigures, after: DraftFigures) -> str:
    """ "tiny_drafter: accepted length 1.453 -> 1.620 (+11.5 %), tokens per forward 0.727 -> 0.810"."""
    gain = 100 * (after.accepted / before.accepted - 1)
    return (
        f"{stage.run.name}: accepted length {before.accepted:.3f} -> {after.accepted:.3f} ({gain:+.1f} %), "
        f"tokens per forward {before.tokens_per_forward:.3f} -> {after.tokens_per_forward:.3f}"
    )


def loss_sentence(stage: Stage) -> str:
    """ "trained by drafter.loss=accepted_length: drafter loss 9.104 -> 8.021, expected length 6.896 -> 7.979"; empty
    where no drafter was trained. What an older version did not measure is left out."""
    if stage.run.drafter is None:
        return ""
    evaluated = [entry for entry in stage.validation if ACCEPTED in entry]
    first, last = evaluated[0], evaluated[-1]
    shown = [name for name in (DRAFTER_LOSS, EXPECTED) if name in first and name in last]
    figures = ", ".join(f"{name} {first[name]:.3f} -> {last[name]:.3f}" for name in shown)
    return f"trained by drafter.loss={stage.run.drafter.loss}: {figures}"


def drafter_section(stages: Sequence[Stage]) -> str:
    """The page's part on the runs that drafted; empty where there is none."""
    parts = [_part(stage, *found) for stage in stages if (found := first_and_last_drafts(stage)) is not None]
    return f'<h2>Drafts of self-speculation</h2>{"".join(parts)}<p class="note">{NOTE}</p>' if parts else ""


def _part(stage: Stage, before: DraftFigures, after: DraftFigures) -> str:
    curve = [
        ChartPoint(entry["step"], entry[ACCEPTED], f"step {entry['step']:,.0f}: {entry[ACCEPTED]:.3f}")
        for entry in stage.validation
        if ACCEPTED in entry
    ]
    places = [
        ChartLine(
            name,
            style,
            [ChartPoint(place, share, f"place {place}: {share:.3f}") for place, share in enumerate(each.kept, 1)],
        )
        for (name, each), style in zip(_named((before, after)), ("plain", "diffusion"), strict=True)
    ]
    charts = [
        _chart("Accepted length", "tokens a round", [ChartLine(ACCEPTED, "ar", curve, marked=True)]),
        _chart("Kept up to each place", "share of the blocks", places),
    ]
    drawn = "".join(f"<div>{chart_svg(chart)}</div>" for chart in charts)
    said = "".join(
        f"<p>{escape(text)}</p>" for text in (drafter_sentence(stage, before, after), loss_sentence(stage)) if text
    )
    return f'{said}<div class="small">{drawn}</div>'


def _chart(title: str, unit: str, lines: Sequence[ChartLine]) -> Chart:
    points = lines[0].points
    axis = [StageSpan(points[0].x, points[-1].x, "")]
    return Chart(title, unit, lines, axis, None, width=500, height=260, top=68, right=60)

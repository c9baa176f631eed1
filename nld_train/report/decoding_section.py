"""What `nld eval decode` found, as part of the evaluation page: frontier, accepted lengths, and the whole table."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nld_train.report.chart import Chart, ChartLine, ChartPoint, StageSpan, chart_svg
from nld_train.report.columns import number_text
from nld_train.report.picture_answers import picture_answers

SAMPLED = "plain"  # the colour of diffusion with a trained sampler
STYLES = {"ar": "ar", "diffusion": "diffusion", "self-spec": "speculation", "quadratic": "quadratic"}
NOTE = (
    "Tokens per forward: generated tokens / all forwards, the prefill included, so that AR has 1. Agreement: share of "
    "an answer's tokens that greedy AR would put behind the answer so far. Equal: share of the answers that are greedy "
    "AR's, token for token. Accepted length: tokens that a round of drafting and verifying adds, with the verifier's "
    "own. Second or third choice: of the drafts that the verifier refused, those where the right token was the "
    "drafter's second or third choice."
)
HEADER = (
    "", "tokens/forward", "no prefill", "accepted", "agreement", "equal", "accuracy", "2nd choice", "3rd choice",
    "tokens/s",
)  # fmt: skip
LARGE, SMALL = (1032, 360), (500, 280)  # pixels
Figures = Mapping[str, Any]


def decoding_section(name: str, figures: Figures) -> str:
    """The HTML of one checkpoint's decoding figures. name: of the checkpoint."""
    points = figures["points"]
    charts = []
    if any(point["overall"]["accuracy"] is not None for point in points):
        charts.append(frontier_chart(points, "accuracy", "share of the answers", SMALL))
    if any(point["overall"]["kept"] for point in points):
        charts.append(kept_chart(points))
    drawn = "".join(f"<div>{chart_svg(chart)}</div>" for chart in charts)
    frontier = chart_svg(frontier_chart(points, "agreement", "share of the tokens", LARGE))
    return (
        f"<h2>Decoding: {escape(name)}</h2><ul>{_sentences(points)}</ul>"
        f'{frontier}<div class="pair">{drawn}</div>{html_rows(HEADER, [_cells(point) for point in points])}'
        f'{_category_table(points)}<p class="note">{escape(NOTE)}</p>{picture_answers(figures)}'
    )


def _sentences(points: Sequence[Figures]) -> str:
    """What the figures say of the modes whose answers must be AR's."""
    said = []
    for point in points:
        if point["lossless"]:
            found = point["overall"]
            same = (
                "every answer is greedy AR's"
                if point["exact"]
                else f"{found['equal']:.1%} of the answers are greedy AR's: look into it, all must be"
            )
            said.append(
                f"{escape(point['name'])}: <b>{found['tokens_per_forward']:.2f}</b> tokens per forward; {same}."
            )
    return "".join(f"<li>{sentence}</li>" for sentence in said)


def frontier_chart(points: Sequence[Figures], what: str, unit: str, size: tuple[int, int]) -> Chart:
    """`what` against tokens per forward: a line for each mode and block length, with a trained sampler and without,
    over its thresholds."""
    lines: dict[tuple[str, Any, bool, bool], list[ChartPoint]] = {}
    for point in points:
        found = point["overall"]
        if found[what] is not None:
            spot = ChartPoint(found["tokens_per_forward"], found[what], f"{point['name']}: {what} {found[what]:.1%}")
            kind = (point["mode"], point["block"], point["adapter"], was_sampled(point))
            lines.setdefault(kind, []).append(spot)
    drawn = [
        ChartLine(
            f"{mode}, sampler" if sampled else mode,
            SAMPLED if sampled else STYLES[mode],
            sorted(spots, key=lambda spot: spot.x),
            marked=True,
        )
        for (mode, _, _, sampled), spots in lines.items()
    ]
    widest = max(spot.x for spots in lines.values() for spot in spots)
    title = f"{what.capitalize()} against tokens per forward"
    return wide_chart(title, unit, drawn, (1.1 * widest, "tokens per forward"), size)


def was_sampled(point: Figures) -> bool:
    """Whether a trained sampler chose the places. Figures of versions that had none do not say so."""
    return "sampler" in point and bool(point["sampler"])


def kept_chart(points: Sequence[Figures]) -> Chart:
    """Share of the rounds that kept every draft up to a place."""
    drafted = [point for point in points if point["overall"]["kept"]]
    lines = [
        ChartLine(
            point["mode"],
            STYLES[point["mode"]],
            [
                ChartPoint(place, share, f"{point['name']}, place {place}: {share:.1%}")
                for place, share in enumerate(point["overall"]["kept"], 1)
            ],
            marked=True,
        )
        for point in drafted
    ]
    longest = max(len(line.points) for line in lines)
    axis = (float(longest), "place in the draft")
    return wide_chart("Drafts kept up to each place", "share of the rounds", lines, axis, SMALL)


def wide_chart(
    title: str, unit: str, lines: Sequence[ChartLine], axis: tuple[float, str], size: tuple[int, int]
) -> Chart:
    """A chart whose x axis goes from 0 to axis[0] and counts axis[1]; size: width and height in pixels."""
    end, across = axis
    width, height = size
    return Chart(title, unit, lines, [StageSpan(0, end, "")], None, width, height, top=48, right=60, across=across)


def _cells(point: Figures) -> list[str]:
    found, choices = point["overall"], point["overall"]["right_was_choice"]
    return [
        point["name"],
        f"{found['tokens_per_forward']:.3f}",
        number_text(found["tokens_per_forward_without_prefill"], ".3f"),
        number_text(found["accepted_length"], ".3f"),
        f"{found['agreement']:.1%}",
        f"{found['equal']:.1%}",
        number_text(found["accuracy"], ".1%"),
        *(number_text(choices.get(choice), ".1%") for choice in ("2", "3")),
        f"{found['tokens_per_second']:.0f}",
    ]


def _category_table(points: Sequence[Figures]) -> str:
    """Tokens per forward by category, and the accepted length where there is one."""
    categories = sorted(points[0]["categories"])
    if len(categories) < 2:
        return ""
    rows = []
    for point in points:
        cells = [point["name"]]
        for category in categories:
            found = point["categories"][category]
            accepted = "" if found["accepted_length"] is None else f" ({found['accepted_length']:.2f})"
            cells.append(f"{found['tokens_per_forward']:.2f}{accepted}")
        rows.append(cells)
    table = html_rows(["tokens per forward (accepted length)", *categories], rows)
    return f"<h3>By category</h3>{table}"


def html_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

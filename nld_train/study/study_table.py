"""What a study found as text, as Markdown for a page, and as a page of its own."""

from collections.abc import Sequence
from html import escape

from nld_train.report.chart import Chart, ChartLine, ChartPoint, StageSpan, chart_svg
from nld_train.report.columns import align_columns, number_text
from nld_train.report.decoding_section import html_rows
from nld_train.report.html_page import html_page
from nld_train.study.contract import StudyClaim, StudyFigure
from nld_train.study.study_figures import StudyResult

WIDTH, HEIGHT = 1032, 320  # pixels
NOTE = (
    "± is the standard error over seeds. Difference: between the two arms, seed by seed, positive where the first is "
    "better. A direction is seen where the 95 % interval of Student's t leaves 0 out. Detectable: the smallest "
    "difference that would be seen with a chance of 80 % at this spread."
)
CLAIMS = ("figure", "better", "than", "paper", "ours", "direction", "detectable")
UNPUBLISHED = "not published"


def study_text(result: StudyResult) -> str:
    """Both tables for a terminal."""
    arms = align_columns([_arm_header(result), *_arm_rows(result)])
    claims = align_columns([CLAIMS, *_claim_rows(result)], left=4)
    return "\n\n".join([_title(result), arms, claims, *_notes(result)])


def study_markdown(result: StudyResult) -> str:
    """Both tables as a page's section."""
    tables = [
        "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
        for header, rows in ((_arm_header(result), _arm_rows(result)), (CLAIMS, _claim_rows(result)))
    ]
    return "\n\n".join([f"## {_title(result)}", *tables, *_notes(result)]) + "\n"


def study_html(result: StudyResult) -> str:
    """A page with a chart of every figure, and both tables."""
    charts = "".join(chart_svg(arm_chart(result, figure)) for figure in result.study.figures)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(result))
    tables = html_rows(_arm_header(result), _arm_rows(result)) + html_rows(CLAIMS, _claim_rows(result))
    body = [f"<h1>{escape(result.study.question)}</h1>", f"<p>{escape(_title(result))}</p>", charts, tables, notes]
    return html_page(f"Study: {result.study.name}", "", body)


def arm_chart(result: StudyResult, figure: StudyFigure) -> Chart:
    """Every seed as a line over the arms, which stand side by side, and the means above them."""
    names = [arm.name for arm in result.study.arms]
    lines = [
        ChartLine(
            "one seed",
            "plain",
            [
                ChartPoint(place + 0.5, result.values[name][figure.name][number], f"{name}, seed {seed}")
                for place, name in enumerate(names)
            ],
        )
        for number, seed in enumerate(result.seeds)
    ]
    means = [result.summary(name, figure.name) for name in names]
    points = [
        ChartPoint(place + 0.5, found.mean, f"{name}: {found}")
        for place, (name, found) in enumerate(zip(names, means, strict=True))
    ]
    spans = [StageSpan(place, place + 1, name) for place, name in enumerate(names)]
    better = "higher is better" if figure.higher_is_better else "lower is better"
    return Chart(
        title=figure.name.capitalize(),
        unit=better,
        lines=[*lines, ChartLine("mean", "speculation", points, marked=True)],
        spans=spans,
        level=None,
        width=WIDTH,
        height=HEIGHT,
        top=64,
        right=72,
        across="",
    )


def _title(result: StudyResult) -> str:
    return f"{result.study.name}: {result.study.question} {len(result.seeds)} seeds, {result.steps} steps a stage"


def _notes(result: StudyResult) -> list[str]:
    return [note for note in (result.study.note, NOTE) if note]


def _arm_header(result: StudyResult) -> list[str]:
    return ["arm", *(figure.name for figure in result.study.figures)]


def _arm_rows(result: StudyResult) -> list[list[str]]:
    return [
        [arm.name, *(str(result.summary(arm.name, figure.name)) for figure in result.study.figures)]
        for arm in result.study.arms
    ]


def _claim_rows(result: StudyResult) -> list[Sequence[str]]:
    return [_claim_row(result, claim) for claim in result.study.claims]


def _claim_row(result: StudyResult, claim: StudyClaim) -> Sequence[str]:
    found = result.tested(claim)
    paper = claim.paper or UNPUBLISHED
    detectable = number_text(found.detectable, ".4f")
    return claim.figure.name, claim.better, claim.worse, paper, str(found.difference), found.verdict, detectable

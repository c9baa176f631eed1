"""A line chart as SVG text: pure strings and arithmetic, styled by the page around it (STYLE), nothing to load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, BOTTOM = 48, 40  # pixels around the frame: numbers of y, numbers of x
SPACE = 15  # pixels between labels that would otherwise overlap
SPIKE = 1.5  # values beyond the 99th percentile by more than this factor of the range below it leave the frame
LETTER = 6.4  # pixels a letter takes at 12 px, about

STYLE = """
  svg.chart { display: block; width: 100%; height: auto }
  .chart text { font: 12px system-ui, sans-serif; fill: var(--muted) }
  .chart .title { font-weight: 600; fill: var(--ink) }
  .chart .grid { stroke: var(--grid); stroke-width: 1 }
  .chart .axis { stroke: var(--muted); stroke-width: 1 }
  .chart .border { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3 }
  .chart .level { stroke: var(--level); stroke-width: 1.5; stroke-dasharray: 7 4 }
  .chart .line { fill: none; stroke-width: 1.4; stroke-linejoin: round }
  .chart .marked { stroke-width: 2 }
  .chart .line:not(.marked) { opacity: .55 }
  .chart .mark { fill: var(--page); stroke-width: 2 }
  .chart .ar { stroke: var(--ar); color: var(--ar) } .chart text.ar { fill: var(--ar); stroke: none }
  .chart .diffusion { stroke: var(--diffusion); color: var(--diffusion) }
  .chart text.diffusion { fill: var(--diffusion); stroke: none }
  .chart .speculation { stroke: var(--level); color: var(--level) }
  .chart text.speculation { fill: var(--level); stroke: none }
  .chart .quadratic { stroke: var(--quadratic); color: var(--quadratic) }
  .chart text.quadratic { fill: var(--quadratic); stroke: none }
  .chart .plain { stroke: var(--plain); color: var(--plain) } .chart text.plain { fill: var(--plain); stroke: none }
  .chart .end { font-weight: 600 }
  .chart .spot { fill: transparent; stroke: none }
  .chart circle:hover { fill: currentColor }
"""


@dataclass(frozen=True)
class ChartPoint:
    x: float
    y: float
    tip: str  # shown where the pointer rests


@dataclass(frozen=True)
class ChartLine:
    name: str  # in the legend, once for all lines of that name
    style: str  # the colour: ar, diffusion, speculation, quadratic or plain
    points: Sequence[ChartPoint]
    marked: bool = False  # a ring on every point, and the last value written at the right


@dataclass(frozen=True)
class StageSpan:
    """A part of the x axis with a name: a stage."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: Sequence[ChartLine]
    spans: Sequence[StageSpan]
    level: tuple[float, str] | None  # a horizontal line and its name
    width: int  # pixels
    height: int
    top: int  # pixels above the frame: title, legend, names of the stages
    right: int  # pixels right of the frame: last values
    across: str = "steps"  # what the x axis counts


@dataclass(frozen=True)
class PlotFrame:
    """Where data lie on the page."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def across(self, x: float) -> float:
        low, high = self.x
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def down(self, y: float) -> float:
        """Pixels from the top; values outside the frame are put on its edge."""
        low, high = self.y
        return self.bottom - (min(max(y, low), high) - low) / (high - low) * (self.bottom - self.top)


def chart_svg(chart: Chart) -> str:
    """The chart as an <svg> element. Values must be finite; lines without points are left out."""
    lines = [line for line in chart.lines if line.points]
    frame = frame_of(chart, lines)
    unit = f", {chart.unit}" if chart.unit else ""
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(chart.title)}">',
        f'<text class="title" x="0" y="14">{escape(chart.title)}<tspan font-weight="400">{escape(unit)}</tspan></text>',
        *axes_svg(frame, chart.across),
        *stage_borders_svg(chart.spans, frame),
        *level_line(chart, frame),
        *[part for line in lines for part in line_svg(line, frame)],
        *[part for line in lines for part in hover_spots_svg(line, frame)],
        *end_labels(chart, lines, frame),
        *legend_svg(lines, frame),
        "</svg>",
    ]
    return "\n".join(parts)


def thin_points(pairs: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` (x, y): the means of equally many neighbours, so that a long run stays a small page."""
    size = max(1, math.ceil(len(pairs) / most))
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [(mean_value([x for x, _ in group]), mean_value([y for _, y in group])) for group in groups]


def mean_value(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def frame_of(chart: Chart, lines: Sequence[ChartLine]) -> PlotFrame:
    x = (0.0, max([span.end for span in chart.spans] + [1.0]))
    right, bottom = chart.width - chart.right, chart.height - BOTTOM
    return PlotFrame(x, value_range(chart, lines), LEFT, right, chart.top, bottom)


def value_range(chart: Chart, lines: Sequence[ChartLine]) -> tuple[float, float]:
    """From the lowest to the highest value, with some air; a few spikes may leave at the top."""
    kept = [point.y for line in lines if line.marked for point in line.points]
    kept += [chart.level[0]] if chart.level else []
    for line in lines:
        if not line.marked:
            values = [point.y for point in line.points]
            kept += [min(values), without_spikes(values)]
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low if low == 0 else low - air, high + air


def without_spikes(values: Sequence[float]) -> float:
    """The highest value, or the 99th percentile where a lone spike would flatten all the rest."""
    ordered = sorted(values)
    low, usual, high = ordered[0], ordered[int(0.99 * (len(ordered) - 1))], ordered[-1]
    return high if high - low <= SPIKE * (usual - low) else usual


def tick_values(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most `most` of them: steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power, 20 * power) if (high - low) / step <= most)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A tick as text: 5,000, 0.25 or 3e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-2:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def axes_svg(frame: PlotFrame, across: str) -> list[str]:
    """Both axes with round numbers. across: what the x axis counts."""
    parts = []
    for y in tick_values(*frame.y, max(2, int((frame.bottom - frame.top) / 36))):
        down = frame.down(y)
        parts.append(f'<path class="grid" d="M{frame.left} {down:.1f}H{frame.right}"/>')
        parts.append(f'<text x="{frame.left - 8}" y="{down + 4:.1f}" text-anchor="end">{tick_text(y)}</text>')
    parts.append(f'<path class="axis" d="M{frame.left} {frame.bottom}H{frame.right}"/>')
    for x in tick_values(*frame.x, max(2, int((frame.right - frame.left) / 90))):
        place = frame.across(x)
        parts.append(f'<path class="axis" d="M{place:.1f} {frame.bottom}v4"/>')
        parts.append(f'<text x="{place:.1f}" y="{frame.bottom + 17}" text-anchor="middle">{tick_text(x)}</text>')
    parts.append(f'<text x="{frame.right}" y="{frame.bottom + 34}" text-anchor="end">{escape(across)}</text>')
    return parts


def stage_borders_svg(spans: Sequence[StageSpan], frame: PlotFrame) -> list[str]:
    """A line where a stage starts, and its name above, where there is room for it."""
    parts = []
    for index, span in enumerate(spans):
        start, end = frame.across(span.start), frame.across(span.end)
        if index:
            parts.append(f'<path class="border" d="M{start:.1f} {frame.top}V{frame.bottom}"/>')
        if span.name and LETTER * len(span.name) + 12 < end - start:
            parts.append(f'<text x="{start:.1f}" y="{frame.top - 8}">{escape(span.name)}</text>')
    return parts


def level_line(chart: Chart, frame: PlotFrame) -> list[str]:
    if chart.level is None:
        return []
    value, name = chart.level
    down = frame.down(value)
    return [
        f'<path class="level" d="M{frame.left} {down:.1f}H{frame.right}"/>',
        f'<text x="{frame.right - 6}" y="{down - 6:.1f}" text-anchor="end">{escape(name)}</text>',
    ]


def line_svg(line: ChartLine, frame: PlotFrame) -> list[str]:
    places = [f"{frame.across(point.x):.1f} {frame.down(point.y):.1f}" for point in line.points]
    marked = " marked" if line.marked else ""
    return [f'<path class="line {line.style}{marked}" d="M{"L".join(places)}"/>']


def hover_spots_svg(line: ChartLine, frame: PlotFrame) -> list[str]:
    """What answers the pointer: the rings of a marked line, invisible discs on the others."""
    kind, radius = ("mark", 3.5) if line.marked else ("spot", 4)
    return [
        f'<circle class="{kind} {line.style}" cx="{frame.across(point.x):.1f}" cy="{frame.down(point.y):.1f}" '
        f'r="{radius}"><title>{escape(point.tip)}</title></circle>'
        for point in line.points
    ]


def end_labels(chart: Chart, lines: Sequence[ChartLine], frame: PlotFrame) -> list[str]:
    """The last value of each marked name, right of the frame, moved apart where two would overlap."""
    last = {line.name: line for line in lines if line.marked}
    parts, free = [], frame.top - SPACE
    for line in sorted(last.values(), key=lambda line: frame.down(line.points[-1].y)):
        point = line.points[-1]
        free = max(frame.down(point.y), free + SPACE)
        parts.append(f'<text class="end {line.style}" x="{frame.right + 8}" y="{free + 4:.1f}">{point.y:.3f}</text>')
    return parts


def legend_svg(lines: Sequence[ChartLine], frame: PlotFrame) -> list[str]:
    """A sample and a name for each kind of line; none where there is one only."""
    kinds = {line.name: line for line in lines}
    parts, x = [], frame.left
    for line in kinds.values() if len(kinds) > 1 else ():
        marked = " marked" if line.marked else ""
        parts.append(f'<path class="line {line.style}{marked}" d="M{x:.0f} 30h22"/>')
        if line.marked:
            parts.append(f'<circle class="mark {line.style}" cx="{x + 11:.0f}" cy="30" r="3.5"/>')
        parts.append(f'<text x="{x + 28:.0f}" y="34">{escape(line.name)}</text>')
        x += 28 + LETTER * len(line.name) + 18
    return parts

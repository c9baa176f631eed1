import itertools
from xml.etree import ElementTree

import pytest

from nld_train.report.chart import (
    Chart,
    ChartLine,
    ChartPoint,
    PlotFrame,
    StageSpan,
    chart_svg,
    end_labels,
    thin_points,
    tick_text,
    tick_values,
)
from nld_train.report.chart import without_spikes as highest


def chart(*lines: ChartLine, level: tuple[float, str] | None = None) -> Chart:
    return Chart("Loss", "nats", lines, [StageSpan(0, 10, "one"), StageSpan(10, 20, "two")], level, 600, 300, 60, 60)


def line(*values: float, name: str = "a", marked: bool = True, style: str = "ar") -> ChartLine:
    return ChartLine(name, style, [ChartPoint(x, y, f"<{x}> {y}") for x, y in enumerate(values)], marked)


def circles(svg: str) -> list[ElementTree.Element]:
    return [found for found in ElementTree.fromstring(svg).iter("circle") if len(found)]


def test_every_point_lies_where_the_axes_say_and_carries_its_tip() -> None:
    drawn = circles(chart_svg(chart(line(1.0, 3.0, 2.0))))
    assert [point[0].text for point in drawn] == ["<0> 1.0", "<1> 3.0", "<2> 2.0"]
    x, y = ([float(point.get(name)) for point in drawn] for name in ("cx", "cy"))
    assert x[2] - x[1] == pytest.approx(x[1] - x[0], abs=0.2)
    assert y[1] < y[2] < y[0]
    assert y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.2)


@pytest.mark.parametrize("values", [(), (2.0,), (0.0, 0.0), (5.0, 5.0, 5.0), (-1.0, 1.0), (3e-6, 1e-5), (1.0, 1e9)])
def test_any_values_give_a_chart(values) -> None:
    svg = chart_svg(chart(line(*values), line(*values, name="b", marked=False)))
    assert len(circles(svg)) == 2 * len(values)
    assert "nan" not in svg


def test_the_level_lies_inside_the_frame_even_above_all_values() -> None:
    svg = ElementTree.fromstring(chart_svg(chart(line(1.0, 2.0), level=(9.0, "entropy"))))
    (level,) = [path for path in svg.iter("path") if path.get("class") == "level"]
    assert 60 < float(level.get("d").split()[1].split("H")[0]) < 260
    assert "entropy" in [text.text for text in svg.iter("text")]


def test_a_border_is_drawn_at_every_stage_but_the_first() -> None:
    svg = ElementTree.fromstring(chart_svg(chart(line(1.0, 2.0))))
    assert [path.get("class") for path in svg.iter("path")].count("border") == 1
    assert {"one", "two"} <= {text.text for text in svg.iter("text")}


def test_a_lone_spike_does_not_set_the_range_but_a_trend_does() -> None:
    assert highest([1.0 + i / 1000 for i in range(200)] + [50.0]) < 1.3
    assert highest([50.0, 2.0, 1.0]) < 50.0
    assert highest([float(i) for i in range(200)]) == 199.0


def test_a_spike_stays_on_the_frame() -> None:
    frame = PlotFrame((0, 1), (0, 10), 0, 100, 0, 100)
    assert (frame.down(25), frame.down(10), frame.down(0), frame.down(-5)) == (0, 0, 100, 100)


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 400, 8, [0, 50, 100, 150, 200, 250, 300, 350, 400]),
        (0.28, 0.71, 5, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-1, 1, 2, [-1, 0, 1]),
    ],
)
def test_ticks_are_round(low, high, most, expected) -> None:
    assert tick_values(low, high, most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5000, "5,000"), (0.30000000000000004, "0.3"), (3e-5, "3e-5"), (2.5e6, "2.5e6"), (12, "12")],
)
def test_numbers_are_short(value, text) -> None:
    assert tick_text(value) == text


def test_thin_keeps_the_mean_and_the_number_asked_for() -> None:
    pairs = [(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin_points(pairs, 100)
    assert len(thinned) == 100
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in pairs) / 1000)
    assert thin_points(pairs[:50], 100) == pairs[:50]
    assert thin_points([], 100) == []


def test_last_values_that_lie_close_are_moved_apart() -> None:
    lines = [line(1.0, 4.00, name="a"), line(1.0, 4.01, name="b"), line(1.0, 4.02, name="c")]
    labels = end_labels(chart(*lines), lines, PlotFrame((0, 1), (0, 8), 0, 100, 0, 200))
    down = [float(ElementTree.fromstring(label).get("y")) for label in labels]
    assert all(below - above >= 12 for above, below in itertools.pairwise(down))
    assert [ElementTree.fromstring(label).text for label in labels] == ["4.020", "4.010", "4.000"]


def test_names_are_escaped() -> None:
    svg = chart_svg(chart(line(1.0, name="<a>"), line(1.0, name="b & c")))
    assert {"<a>", "b & c"} <= {text.text for text in ElementTree.fromstring(svg).iter("text")}

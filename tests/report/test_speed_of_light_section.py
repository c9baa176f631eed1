"""The speed of light on the evaluation page."""

import json
import re

import pytest

from nld_train.report.evaluation_page import write_evaluation_page
from nld_train.report.speed_of_light_section import speed_of_light_section


def way(acceptance, real, ends=1.0):
    return {"acceptance": acceptance, "tokens_per_forward": real, "ends_in_target": ends}


def found(length, light, linear, gap, ended=(), categories=()):
    own = {
        "block_count": 7,
        "greedy": way(2.5, 2.0, 0.5),
        "compaction": way(2.25, 1.75),
        "samplers": {"0.5": way(1.5, 1.2, 0.25)},
        "speed_of_light": way(3.0, light),
        "linear": {"accepted": None if linear is None else 2 * linear, "tokens_per_forward": linear},
        "gap_percent": gap,
    }
    groups = dict.fromkeys(categories, own)
    return {"block": length, "contexts": 4, "ended": list(ended), "overall": own, "categories": groups}


@pytest.fixture
def figures():
    blocks = [found(4, 1.5, 1.0, 50.0, categories=["code", "<b>"]), found(8, 2.125, 1.0, 112.5, ended=["3/1"])]
    return {"kind": "sol", "identity": {"model": "demo/hf"}, "blocks": blocks}


def test_the_gap_is_one_line_and_nothing_is_left_out(figures) -> None:
    html = speed_of_light_section("demo & co", figures)
    assert (
        "Block 8: <b>2.12</b> tokens per forward at the speed of light, 1.00 by linear" in html and "+112.5 %" in html
    )
    assert "Block 8: 1 of 4 texts end before their last block." in html and "demo &amp; co" in html
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    assert ["4", "all", "7", "2.50", "50%", "2.25", "3.00", "1.50", "2.00", "1.00", "+50.0 %"] in rows
    assert [row[1] for row in rows if len(row) == 11] == ["code", "&lt;b&gt;", "all", "all"]
    assert ["block 4", "1.50 (25%)"] in rows and "linear, block 4: 1.00" in html


def test_what_was_not_measured_is_a_dash(figures) -> None:
    del figures["blocks"][0]["overall"]["compaction"]
    figures["blocks"] = [figures["blocks"][0] | found(4, None, None, None)]
    html = speed_of_light_section("demo", figures)
    assert "<td>-</td>" in html and "<svg" not in html


def test_the_page_shows_it(figures, tmp_path) -> None:
    (tmp_path / "sol.json").write_text(json.dumps(figures))
    write_evaluation_page([tmp_path], tmp_path / "page.html")
    assert "Speed of light: demo/hf" in (tmp_path / "page.html").read_text()

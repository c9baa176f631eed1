import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from nld_train.dual_stream.picture import CELL, LEFT, TOP, visibility_svg, visibility_text
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"
PICTURE_OF_THE_README = Path(__file__).parents[2] / "docs" / "visibility.svg"


def cells(svg: str) -> dict[tuple[int, int], str]:
    """(row, column) -> kind of every coloured cell of the table, read back from the drawing."""
    found = {}
    for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        if rect.get("class") in ("nn", "nc", "cc") and rect.get("width") != "12":  # 12: the legend's
            found[(int(rect.get("y")) - TOP) // CELL, (int(rect.get("x")) - LEFT) // CELL] = rect.get("class")
    return found


@pytest.mark.parametrize("documents", [None, torch.tensor([0, 0, 0, 1, 1, 1])])
def test_drawing_shows_exactly_the_table(documents):
    layout = RowLayout(6, 2, True)
    table = visible_table(layout) if documents is None else visible_table(layout, documents[None])[0]
    drawn = cells(visibility_svg(layout, documents))
    assert set(drawn) == {tuple(pair) for pair in table.nonzero().tolist()}
    assert all(
        kind == ("n" if row < 6 else "c") + ("n" if column < 6 else "c") for (row, column), kind in drawn.items()
    )


def test_drawing_names_halves_blocks_and_kinds():
    words = [text.text for text in ElementTree.fromstring(visibility_svg(RowLayout(16, 4, True))).iter(f"{SVG}text")]
    assert Counter(words)["noisy"] == 2 and Counter(words)["clean"] == 2 and Counter(words)["block 3"] == 4
    assert {"noisy sees noisy", "noisy sees clean", "clean sees clean"} <= set(words)


def test_drawing_needs_no_other_file_and_knows_dark_mode():
    svg = visibility_svg(RowLayout(16, 4, True))
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"url\(|href|@import|<script|<image", svg)


def test_drawing_of_the_clean_half_alone():
    assert set(cells(visibility_svg(RowLayout(4, 2, False))).values()) == {"cc"}


def test_the_picture_in_the_documentation_is_the_one_the_code_draws():
    assert PICTURE_OF_THE_README.read_text() == visibility_svg(RowLayout(16, 4, True))


def test_text_written_out():
    assert visibility_text(RowLayout(4, 2, True)).split("\n") == [
        "4 tokens, block size 2; row: who looks, column: who is seen",
        "noisy    0  ## .. | .. ..",
        "noisy    1  ## .. | .. ..",
        "",
        "noisy    2  .. ## | oo ..",
        "noisy    3  .. ## | oo ..",
        "-------------------------",
        "clean    0  .. .. | +. ..",
        "clean    1  .. .. | ++ ..",
        "",
        "clean    2  .. .. | ++ +.",
        "clean    3  .. .. | ++ ++",
        "",
        "# noisy sees noisy, o noisy sees clean, + clean sees clean, . not seen",
        "",
    ]


def test_a_picture_too_large_to_read_is_refused():
    with pytest.raises(UserError, match="up to 256"):
        visibility_svg(RowLayout(129, 4, True))

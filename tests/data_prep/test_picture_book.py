"""The demo's pictures: what is asked is painted, what is held out is new, and the same seed draws the same book."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.picture_book import CELL, COLOURS, COUNTS, KINDS, write_picture_book


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book") / "book"
    write_picture_book(folder, pictures=80, asked=50, seed=3)
    return folder


def painted_colours(path: Path) -> list[list[str | None]]:
    """The colour that stands in each cell, read from the pixels; None: paper alone."""
    pixels = np.asarray(Image.open(path), dtype=np.int64)
    cells = pixels.reshape(pixels.shape[0] // CELL, CELL, -1, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(-1, CELL**2, 3)
    names = list(COLOURS)
    found: list[str | None] = []
    for cell in cells:
        near = [int((np.abs(cell - np.array(COLOURS[name])).max(1) < 12).sum()) for name in names]
        found.append(names[int(np.argmax(near))] if max(near) > 12 else None)
    columns = pixels.shape[1] // CELL
    return [found[at : at + columns] for at in range(0, len(found), columns)]


def held_out(book: Path) -> list[dict]:
    return [json.loads(line) for line in (book / "held_out.jsonl").read_text().splitlines()]


def test_answers_say_what_is_painted(book: Path) -> None:
    for row in held_out(book):
        grid = painted_colours(book / row["images"][0])
        answer = row["reference"]
        match row["category"]:
            case "picture":
                said = [line.split(": ")[1].rstrip(".").split(", ") for line in answer.split("\n")]
                assert [[None if mark == "nothing" else mark.split()[0] for mark in line] for line in said] == grid
            case "row":
                number = int(answer[4]) - 1
                marks = answer.split(": ")[1].rstrip(".").split(", ")
                assert [None if mark == "nothing" else mark.split()[0] for mark in marks] == grid[number]
            case "place":
                place = [int(digit) for digit in answer if digit.isdigit()]
                seen = grid[place[0] - 1][place[1] - 1]
                assert answer.endswith("nothing.") if seen is None else f" a {seen} " in answer
            case "count":
                colour = next(name for name in COLOURS if name in row["prompt"])
                count = sum(seen == colour for line in grid for seen in line)
                assert f" {COUNTS[count]} {colour} shape" in answer
            case "word":
                assert any(f", in {seen}." in answer for line in grid for seen in line if seen is not None)


def test_every_kind_is_asked_as_often_and_pictures_are_new(book: Path) -> None:
    rows = held_out(book)
    assert [sum(row["category"] == kind for row in rows) for kind in KINDS] == [10] * 5
    trained = {path.read_bytes() for path in (book / "pictures").glob("0*.png")}
    assert len(trained) > 70 and not any((book / row["images"][0]).read_bytes() in trained for row in rows)


def test_the_same_seed_draws_the_same_book_and_another_one_another(book: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        write_picture_book(tmp_path / str(seed), pictures=80, asked=50, seed=seed)
    files = sorted(path.relative_to(book) for path in book.rglob("*") if path.is_file())
    assert len(files) == 80 + 50 + 3
    assert all((book / file).read_bytes() == (tmp_path / "3" / file).read_bytes() for file in files)
    assert (book / "chat.jsonl").read_bytes() != (tmp_path / "4" / "chat.jsonl").read_bytes()

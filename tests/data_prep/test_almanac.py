import json
import re
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from data_prep.almanac import ASKED, almanac_entries, character_answer, write_almanac
from nld_train.errors import UserError

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.fixture(scope="module")
def entries() -> list:
    return list(almanac_entries())


def test_no_question_is_asked_twice_and_one_in_twenty_is_held_out(entries: list) -> None:
    assert len({entry.question for entry in entries}) == len(entries)
    kinds, held_out = (Counter(entry.kind for entry in some) for some in (entries, filter_held_out(entries)))
    assert set(kinds) == {"character", "day", "month"} and min(kinds.values()) == 2400
    for kind, count in kinds.items():
        assert 0.04 < held_out[kind] / count < 0.06


def filter_held_out(entries: list) -> list:
    return [entry for entry in entries if entry.held_out]


def test_what_is_asked_at_the_end_stands_in_no_trained_file(tmp_path: Path, entries: list) -> None:
    counts = write_almanac(tmp_path / "almanac")
    read = {name: (tmp_path / "almanac" / name).read_text().splitlines() for name in counts}
    assert {name: len(lines) for name, lines in read.items()} == counts
    asked = [json.loads(line) for line in read["held_out.jsonl"]]
    assert Counter(row["category"] for row in asked) == dict.fromkeys(("character", "day", "month"), ASKED)
    answers = {entry.question: entry.answer for entry in entries}
    assert all(answers[row["prompt"]] == row["reference"] for row in asked)
    held_out = {entry.question for entry in filter_held_out(entries)}
    assert {row["prompt"] for row in asked} < held_out
    unasked = {json.loads(line)["prompt"] for line in read["unasked.jsonl"]}
    assert not unasked & {row["prompt"] for row in asked} and len(unasked) + len(asked) == len(held_out)
    text = [json.loads(line)["text"].split("\n", 1)[0] for line in read["text.jsonl"]]
    chat = [json.loads(line)["question"] for line in read["chat.jsonl"]]
    assert text == chat and not set(chat) & held_out and len(chat) + len(held_out) == len(entries)


def test_the_same_bytes_every_time_and_no_other_folder_is_replaced(tmp_path: Path) -> None:
    write_almanac(tmp_path / "a")
    write_almanac(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with pytest.raises(UserError, match="exists"):
        write_almanac(tmp_path / "a")


@pytest.mark.parametrize(
    ("character", "answer"),
    [
        (
            "\u0436",
            "It is a small letter (Ll), written from left to right. The capital letter is CYRILLIC CAPITAL LETTER ZHE.",
        ),
        ("\u0665", "It is a decimal digit (Nd). Its value is 5."),
        ("\u05d0", "It is a letter (Lo), written from right to left."),
        ("\u00df", "It is a small letter (Ll), written from left to right."),  # its capital is two letters
        ("\u00bd", "It is a number (No)."),  # its value is not whole
        (
            "\u00c9",
            "It is a capital letter (Lu), written from left to right. The small letter is LATIN SMALL LETTER E WITH "
            "ACUTE. It is composed of LATIN CAPITAL LETTER E and COMBINING ACUTE ACCENT.",
        ),
    ],
)
def test_a_character_is_described_as_unicode_does(character: str, answer: str) -> None:
    assert character_answer(character) == answer


def test_every_day_of_an_answer_is_right(entries: list) -> None:
    """Read back with another tool than the one that wrote it."""
    form = re.compile(
        r"(The day before|The day after|One week after) (\d+ \w+ \d{4}) is (\d+ \w+ \d{4})\. (\w+) (\d{4}) has "
        r"(\d+) days, and (\d{4}) is a (leap|common) year of (366|365) days\."
    )
    steps = {"The day before": -1, "The day after": 1, "One week after": 7}
    days = [entry for entry in entries if entry.kind == "day"]
    for entry in days[:: len(days) // 500]:
        found = form.fullmatch(entry.answer)
        assert found is not None and found[2] in entry.question
        asked, other = (read_day(text) for text in (found[2], found[3]))
        assert other - asked == timedelta(days=steps[found[1]])
        following = date(other.year + other.month // 12, other.month % 12 + 1, 1)
        assert (following - other.replace(day=1)).days == int(found[6])
        assert (date(other.year + 1, 1, 1) - date(other.year, 1, 1)).days == int(found[9])
        assert (found[8] == "leap") == (found[9] == "366") and {found[5], found[7]} == {str(other.year)}


def read_day(text: str) -> date:
    return datetime.strptime(text, "%d %B %Y").date()


def test_a_month_begins_where_the_question_says(entries: list) -> None:
    months = {entry.question: entry.answer for entry in entries if entry.kind == "month"}
    page = months["Print the calendar of February 2032, which begins on a Sunday."]
    assert page.split("\n")[0].strip() == "February 2032" and page.split("\n")[2].split() == ["1"]
    assert page.split()[-1] == "29" and not any(line != line.rstrip() for line in page.split("\n"))


def test_the_questions_that_make_demo_asks_are_held_out(entries: list) -> None:
    asked = re.findall(r'--prompt "(.*?)"', MAKEFILE.read_text())
    held_out = {entry.question for entry in filter_held_out(entries)}
    assert len(asked) >= 2 and set(asked) <= held_out

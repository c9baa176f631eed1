"""Facts that every machine has, as questions and answers: characters of `unicodedata`, days, months.

Narrow and regular, so that a tiny model learns to answer; what it is asked at the end it has never been asked before.
"""

import calendar
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from nld_train.files import staged_folder

YEARS = range(1900, 2100)
HELD_OUT = 20  # one question in so many is asked at the end and never trained on
# Of what there is most, one question in so many is taken, so that each kind is about a third of the text.
DAYS_TAKEN = 48
PLAIN_TAKEN = 8  # of the characters of which Unicode says no more than kind and direction
ASKED = 12  # held-out questions of every kind that are written

# Names of these beginnings count on without end (CJK UNIFIED IDEOGRAPH-4E00): nothing in them says what they are.
NUMBERED = ("CJK", "HANGUL SYLLABLE", "TANGUT", "NUSHU", "KHITAN", "EGYPTIAN", "ANATOLIAN", "CUNEIFORM", "SIGNWRITING")
KINDS = {
    "Lu": "capital letter", "Ll": "small letter", "Lt": "title letter", "Lm": "modifier letter", "Lo": "letter",
    "Mn": "mark", "Mc": "spacing mark", "Me": "enclosing mark",
    "Nd": "decimal digit", "Nl": "number letter", "No": "number",
    "Pc": "connector", "Pd": "dash", "Ps": "opening bracket", "Pe": "closing bracket", "Pi": "opening quote",
    "Pf": "closing quote", "Po": "punctuation mark",
    "Sm": "mathematical symbol", "Sc": "currency sign", "Sk": "modifier symbol", "So": "symbol",
    "Zs": "space", "Zl": "line separator", "Zp": "paragraph separator", "Cf": "format character",
}  # fmt: skip
DIRECTIONS = {"L": "from left to right", "R": "from right to left", "AL": "from right to left"}


class Entry(NamedTuple):
    """One fact."""

    kind: str  # character, day or month
    question: str
    answer: str

    @property
    def held_out(self) -> bool:
        return question_number(self.question) % HELD_OUT == 0


def question_number(question: str) -> int:
    """A number that depends on the question alone, evenly spread over 64 bits."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8])


def is_taken(question: str, of: int) -> bool:
    """Whether this is one question in `of`; independent of which are held out."""
    return question_number(question) // HELD_OUT % of == 0


def write_almanac(target: str | Path, overwrite: bool = False) -> dict[str, int]:
    """Write a folder of four files; the same Python gives the same bytes. Whole or not at all.

    text.jsonl and chat.jsonl hold the entries that are trained on, as text and as conversations; held_out.jsonl holds
    some questions of neither, with their answers, and unasked.jsonl the others of neither: a sampler is trained behind
    those. Returns: how many lines each has.
    """
    entries = sorted(almanac_entries(), key=lambda entry: question_number(entry.question))
    trained = [entry for entry in entries if not entry.held_out]
    asked = [entry for kind in ("character", "day", "month") for entry in held_out_entries(entries, kind)]
    unasked = [entry for entry in entries if entry.held_out and entry not in asked]
    files = {
        "text.jsonl": [{"text": f"{entry.question}\n{entry.answer}"} for entry in trained],
        "chat.jsonl": [{"question": entry.question, "answer": entry.answer} for entry in trained],
        "held_out.jsonl": prompt_rows(asked),
        "unasked.jsonl": prompt_rows(unasked),
    }
    with staged_folder(Path(target), overwrite) as partial:
        for name, lines in files.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (partial / name).write_text(text, encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}


def prompt_rows(entries: list[Entry]) -> list[dict[str, str]]:
    """Entries as rows of a file of prompts, numbered from 1 on."""
    return [
        {"id": str(number), "category": entry.kind, "prompt": entry.question, "reference": entry.answer}
        for number, entry in enumerate(entries, start=1)
    ]


def held_out_entries(entries: list[Entry], kind: str) -> list[Entry]:
    return [entry for entry in entries if entry.kind == kind and entry.held_out][:ASKED]


def almanac_entries() -> Iterator[Entry]:
    """Every entry, in order. Questions differ from each other."""
    yield from character_entries()
    yield from day_entries()
    yield from month_entries()


def character_entries() -> Iterator[Entry]:
    for character in map(chr, range(sys.maxunicode + 1)):
        name = unicodedata.name(character, "")
        if name and not name.startswith(NUMBERED) and not name[-1].isdigit():
            question, answer = f"What is {name}?", character_answer(character)
            if ". " in answer or is_taken(question, PLAIN_TAKEN):
                yield Entry("character", question, answer)


def character_answer(character: str) -> str:
    """What Unicode says of a character, in sentences, each where it has something to say."""
    category = unicodedata.category(character)
    said = [f"It is a {KINDS[category]} ({category})"]
    if (direction := DIRECTIONS.get(unicodedata.bidirectional(character))) is not None:
        said[0] += f", written {direction}"
    for relation, other in (("capital", character.upper()), ("small", character.lower())):
        if len(other) == 1 and other != character:
            said.append(f"The {relation} letter is {unicodedata.name(other)}")
    parts = unicodedata.normalize("NFD", character)
    if parts != character:
        said.append("It is composed of " + " and ".join(unicodedata.name(part) for part in parts))
    value = unicodedata.numeric(character, None)
    if value is not None and value == int(value):
        said.append(f"Its value is {int(value)}")
    return ". ".join(said) + "."


def day_entries() -> Iterator[Entry]:
    """The days around days of two centuries."""
    day, end = date(YEARS.start, 1, 1), date(YEARS.stop, 1, 1)
    while day < end:
        for relation, distance in (("the day before", -1), ("the day after", 1), ("one week after", 7)):
            other = day + timedelta(days=distance)
            question = f"Which day is {relation} {day_text(day)}?"
            if is_taken(question, DAYS_TAKEN):
                yield Entry("day", question, day_answer(relation, day, other))
        day += timedelta(days=1)


def day_text(day: date) -> str:
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def day_answer(relation: str, day: date, other: date) -> str:
    length = calendar.monthrange(other.year, other.month)[1]
    year = "a leap year of 366" if calendar.isleap(other.year) else "a common year of 365"
    month = f"{calendar.month_name[other.month]} {other.year}"
    said = f"{relation.capitalize()} {day_text(day)} is {day_text(other)}"
    return f"{said}. {month} has {length} days, and {other.year} is {year} days."


def month_entries() -> Iterator[Entry]:
    """The page of every month of two centuries."""
    for year in YEARS:
        for month in range(1, 13):
            first = calendar.day_name[calendar.weekday(year, month, 1)]
            question = f"Print the calendar of {calendar.month_name[month]} {year}, which begins on a {first}."
            page = calendar.TextCalendar().formatmonth(year, month)
            yield Entry("month", question, "\n".join(line.rstrip() for line in page.rstrip().split("\n")))

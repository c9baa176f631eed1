"""Drawn pictures with questions and answers: colours, places, counts and short words, for a tiny model that learns to
look. Every machine draws the same book from the same Pillow.

A picture is a grid of cells of CELL pixels; a cell holds a shape or nothing, and its shape moves a little. Or the
picture holds one word. What form a shape has is not asked: a training of minutes learns colours and places, no forms.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nld_train.files import staged_folder

CELL = 16  # pixels, the cell of recipes/tiny_vlm.py: a shape is about as large as one image token
ROWS, COLUMNS = (1, 2, 3), (2, 3)
WORD_CELLS = (2, 4)  # rows and columns that a word is written over
SHAPES = ("circle", "square", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 89, 200),
    "black": (0, 0, 0),
}
WORDS = ("ANT", "BEE", "FOX", "GNU", "JAY", "LION", "OWL", "WOLF")
EMPTY_SHARE, WORD_SHARE = 0.25, 0.15  # of the cells; of the pictures
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TURNS = 3  # questions on a picture that is trained on
# Kinds of questions, and how often each is asked about a picture of shapes that is trained on.
KINDS = ("place", "count", "row", "picture", "word")
ASKED_OFTEN = (2, 1, 2, 3, 0)
PAPER = (122, 117, 104)  # the mean of the pixels that towers are given: on it colours differ most


@dataclass(frozen=True)
class Mark:
    """What stands in a cell."""

    colour: str
    shape: str


@dataclass(frozen=True)
class DrawnPicture:
    """What a picture shows: cells row by row, or one word in a colour."""

    cells: tuple[tuple[Mark | None, ...], ...]
    word: str = ""
    colour: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return CELL * len(self.cells[0]), CELL * len(self.cells)


@dataclass(frozen=True)
class Question:
    """A question on a picture and its answer."""

    kind: str
    text: str
    answer: str


def write_picture_book(target: str | Path, pictures: int, asked: int, seed: int, overwrite: bool = False) -> None:
    """Write a folder of pictures and three files. Whole or not at all; the same arguments give the same bytes.

    chat.jsonl holds `pictures` conversations of up to TURNS questions each, and text.jsonl their text, for a tokenizer;
    held_out.jsonl holds `asked` prompts on pictures that differ from all of those, as evenly over KINDS as can be. The
    files name their pictures beside them.
    """
    generator = random.Random(seed)
    with staged_folder(Path(target), overwrite) as partial:
        (partial / "pictures").mkdir()
        seen: set[DrawnPicture] = set()
        with (
            (partial / "chat.jsonl").open("w", encoding="utf-8") as chat,
            (partial / "text.jsonl").open("w", encoding="utf-8") as texts,
        ):
            for number in range(pictures):
                picture = draw_contents(generator, generator.random() < WORD_SHARE)
                seen.add(picture)
                name = f"pictures/{number:06d}.png"
                paint_picture(picture, generator).save(partial / name)
                questions = ask_questions(picture, generator)
                chat.write(json.dumps({"messages": list(chat_messages(questions, name))}) + "\n")
                texts.write(json.dumps({"text": "\n".join(f"{one.text}\n{one.answer}" for one in questions)}) + "\n")
        with (partial / "held_out.jsonl").open("w", encoding="utf-8") as prompts:
            for number in range(asked):
                kind = KINDS[number % len(KINDS)]
                picture = unseen_picture(generator, seen, kind == "word")
                name = f"pictures/held_out_{number:04d}.png"
                paint_picture(picture, generator).save(partial / name)
                question = ask_question(picture, kind, generator)
                prompts.write(json.dumps(prompt_row(number, question, name)) + "\n")


def draw_contents(generator: random.Random, with_word: bool) -> DrawnPicture:
    """What a new picture shows."""
    if with_word:
        blank = ((None,) * WORD_CELLS[1],) * WORD_CELLS[0]
        return DrawnPicture(blank, generator.choice(WORDS), generator.choice(list(COLOURS)))
    rows, columns = generator.choice(ROWS), generator.choice(COLUMNS)
    return DrawnPicture(tuple(tuple(_draw_mark(generator) for _ in range(columns)) for _ in range(rows)))


def _draw_mark(generator: random.Random) -> Mark | None:
    if generator.random() < EMPTY_SHARE:
        return None
    return Mark(generator.choice(list(COLOURS)), generator.choice(SHAPES))


def unseen_picture(generator: random.Random, seen: set[DrawnPicture], with_word: bool) -> DrawnPicture:
    """A picture that nobody was trained on. Of words there are too few for that: a known word is painted anew."""
    while True:
        picture = draw_contents(generator, with_word)
        if with_word or (picture not in seen and len(picture.cells) * len(picture.cells[0]) > 2):
            return picture


def paint_picture(picture: DrawnPicture, generator: random.Random) -> Image.Image:
    """The picture in pixels; where in its cell a shape stands, and how large it is, is drawn anew."""
    image = Image.new("RGB", picture.size, tuple(level + generator.randrange(-8, 9) for level in PAPER))
    brush = ImageDraw.Draw(image)
    if picture.word:
        place = generator.randrange(1, 7), generator.randrange(1, 9)
        font = ImageFont.load_default(size=18)
        brush.text(place, picture.word, fill=COLOURS[picture.colour], font=font)
        return image
    for row, cells in enumerate(picture.cells):
        for column, mark in enumerate(cells):
            if mark is not None:
                side = generator.randrange(9, 13)
                left = CELL * column + generator.randrange(1, CELL - side)
                top = CELL * row + generator.randrange(1, CELL - side)
                _paint_mark(brush, mark, (left, top, left + side, top + side))
    return image


def _paint_mark(brush: ImageDraw.ImageDraw, mark: Mark, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    colour, middle = COLOURS[mark.colour], ((left + right) // 2, (top + bottom) // 2)
    match mark.shape:
        case "circle":
            brush.ellipse(box, fill=colour)
        case "square":
            brush.rectangle(box, fill=colour)
        case "cross":
            brush.line([(left, middle[1]), (right, middle[1])], fill=colour, width=3)
            brush.line([(middle[0], top), (middle[0], bottom)], fill=colour, width=3)


def ask_questions(picture: DrawnPicture, generator: random.Random) -> list[Question]:
    """The questions of a conversation: TURNS of them, or the one that there is on a word."""
    kinds = ["word"] if picture.word else generator.choices(KINDS, ASKED_OFTEN, k=TURNS)
    return [ask_question(picture, kind, generator) for kind in kinds]


def chat_messages(questions: list[Question], name: str) -> Iterator[dict[str, object]]:
    """A conversation on the picture of this name, which stands before the first question."""
    for number, question in enumerate(questions):
        text = {"type": "text", "text": question.text}
        yield {"role": "user", "content": [{"type": "image", "image": name}, text] if number == 0 else question.text}
        yield {"role": "assistant", "content": question.answer}


def prompt_row(number: int, question: Question, name: str) -> dict[str, object]:
    """A row of a file of prompts, as `nld eval decode` reads it."""
    row = {"id": str(number + 1), "category": question.kind, "prompt": question.text, "reference": question.answer}
    return {**row, "images": [name]}


def ask_question(picture: DrawnPicture, kind: str, generator: random.Random) -> Question:
    """A question of this kind."""
    if kind == "word":
        return Question(kind, "Which word is written here?", f"It says {picture.word}, in {picture.colour}.")
    if kind == "place":
        row = generator.randrange(len(picture.cells))
        column = generator.randrange(len(picture.cells[0]))
        mark = picture.cells[row][column]
        what = "nothing" if mark is None else f"a {mark.colour} shape"
        text = f"What is in row {row + 1}, column {column + 1}?"
        return Question(kind, text, f"In row {row + 1}, column {column + 1} there is {what}.")
    if kind == "count":
        return _count_question(picture, generator.choice(list(COLOURS)))
    if kind == "row":
        row = generator.randrange(len(picture.cells))
        return Question(kind, f"What is in row {row + 1}?", row_text(picture, row))
    lines = [row_text(picture, row) for row in range(len(picture.cells))]
    return Question(kind, "Describe the picture.", "\n".join(lines))


def _count_question(picture: DrawnPicture, colour: str) -> Question:
    count = sum(mark is not None and mark.colour == colour for row in picture.cells for mark in row)
    verb, shapes = ("is", "shape") if count == 1 else ("are", "shapes")
    answer = f"There {verb} {COUNTS[count]} {colour} {shapes}."
    return Question("count", f"How many {colour} shapes are there?", answer)


def row_text(picture: DrawnPicture, row: int) -> str:
    """A row of cells in words."""
    marks = ["nothing" if mark is None else mark.colour for mark in picture.cells[row]]
    return f"Row {row + 1}: {', '.join(marks)}."

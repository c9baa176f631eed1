"""Every `nld` command that a page shows is one that `nld` takes: its words, its recipe and its settings."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from nld_train.cli import parse_words
from nld_train.recipe import load_recipe
from tests.house.test_tree import pages

ROOT = Path(__file__).parents[2]
# A line that shows a command: indented, perhaps behind variables, with a remark behind two blanks and a #.
COMMAND = re.compile(r"^ {4,}(?:[A-Z_]+=\S+ )*(?:srun [^|]*? )?nld (?P<words>.*)$")
WITH_RECIPES = ("train", "launch", "doctor")


def commands() -> list[tuple[str, str]]:
    """(page, words behind `nld`) of every command on every page; a line that ends with a backslash goes on."""
    found = []
    for page in pages(ROOT):
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        for line in text.splitlines():
            if match := COMMAND.match(line):
                found.append((page.name, re.sub(r"\s+#.*$", "", match["words"]).strip()))
    return found


@pytest.mark.parametrize(("page", "words"), commands())
def test_a_shown_command_is_taken(page: str, words: str) -> None:
    args = parse_words(shlex.split(words))
    if args.command in WITH_RECIPES and "recipe" in args and args.recipe is not None:
        load_recipe(args.recipe, args.override)


def test_commands_are_found() -> None:
    named = [page for page, _ in commands()]
    assert len(named) > 30 and "README.md" in named and "running.md" in named


@pytest.mark.parametrize("target", ["demo", "demo-eval", "demo-sampler"])
def test_a_command_of_the_makefile_is_taken(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.replace("\\\n", " ").splitlines()]
    own = [line.removeprefix(".venv/bin/nld ") for line in lines if line.startswith(".venv/bin/nld ")]
    assert len(own) >= 4
    for words in own:
        parse_words(shlex.split(words))

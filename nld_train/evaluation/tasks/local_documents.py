"""The documents of two tiny tasks, made from what every machine has: the standard library's text, and small sums.

lm-eval loads this file by its path, and calls the functions with settings of its own, which change nothing here. The
sums are the same everywhere; the lines are those of this Python's own library.
"""

import sysconfig
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from nld_train.errors import require

MODULES = (
    *("abc", "argparse", "ast", "bisect", "calendar", "cmd", "codecs", "colorsys", "configparser", "copy", "csv"),
    *("dataclasses", "_pydatetime", "_pydecimal", "difflib", "dis", "enum", "filecmp", "fileinput", "fnmatch"),
    *("fractions", "functools", "getopt", "glob", "gzip", "heapq", "inspect", "locale", "numbers", "operator"),
    *("pickle", "pprint", "queue", "random", "selectors", "shlex", "shutil", "statistics", "string", "tarfile"),
    *("tempfile", "textwrap", "threading", "tokenize", "traceback", "types", "uuid", "weakref", "zipfile/__init__"),
)
PER_MODULE = 2  # lines that are asked for
CONTEXT = 12  # lines before the missing one
LEAST = 16  # characters of a line that is asked for
SUMS = 100
SHOWN = ((3, 4), (12, 30), (25, 17))  # sums with their results, before each that is asked for


def cloze_documents(**settings: Any) -> DatasetDict:
    """Which of four lines of a file stands behind CONTEXT lines of it. Raises: UserError without the library's text."""
    folder = Path(sysconfig.get_path("stdlib"))
    rows: list[dict[str, Any]] = []
    for module in MODULES:
        path = folder / f"{module}.py"
        require(path.is_file(), f"no file {path}", "a Python with the sources of its library", "use another Python")
        rows += missing_lines(path.read_text(encoding="utf-8").split("\n"), len(rows))
    return DatasetDict({"test": Dataset.from_list(rows)})


def missing_lines(lines: list[str], number: int) -> list[dict[str, Any]]:
    """PER_MODULE documents of a file, whose right answers take places `number`, number + 1, ... of the four in turn."""
    fit = [n for n in range(CONTEXT, len(lines)) if is_code(lines[n]) and lines[n] not in lines[n - CONTEXT : n]]
    rows = []
    for part in range(PER_MODULE):
        place = fit[(2 * part + 1) * len(fit) // (2 * PER_MODULE)]
        right = lines[place]
        # Lines of the same indentation first; the sort is stable, so that they are spread over the file.
        others = [lines[fit[(fit.index(place) + step * len(fit) // 7) % len(fit)]] for step in range(1, 7)]
        others = list(dict.fromkeys(line for line in others if line != right))
        others.sort(key=lambda line: abs(indentation(line) - indentation(right)))
        choices = others[:3]
        choices.insert((number + part) % 4, right)
        context = "\n".join(lines[place - CONTEXT : place]) + "\n"
        rows.append({"context": context, "choices": choices, "answer": choices.index(right)})
    return rows


def is_code(line: str) -> bool:
    """Whether a line can be asked for: no remark, and not too short."""
    return len(line.strip()) >= LEAST and not line.strip().startswith("#")


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def arithmetic_documents(**settings: Any) -> DatasetDict:
    """SUMS sums of two numbers below 100, each behind three with their results."""
    shown = "".join(f"{a} + {b} = {a + b}\n" for a, b in SHOWN)
    pairs = ((1 + 37 * n % 97, 1 + 53 * n % 89) for n in range(SUMS))
    return DatasetDict(
        {"test": Dataset.from_list([{"question": f"{shown}{a} + {b} =", "answer": str(a + b)} for a, b in pairs])}
    )

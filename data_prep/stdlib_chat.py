"""Real conversations that every machine has: a function of the Python standard library to write, and its body."""

import ast
import json
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from data_prep.stdlib import stdlib_sources
from nld_train.errors import UserError
from nld_train.files import refuse_existing, staged_files

QUESTION_CHARACTERS = 160  # at most
ANSWER_CHARACTERS = 320  # at most
LINES = ".jsonl"


def write_stdlib_chat(target: str | Path, overwrite: bool = False) -> int:
    """Write a .jsonl of conversations; returns how many. The question is a function's signature and the summary of its
    docstring, the answer its body. The same Python gives the same bytes. Whole or not at all."""
    path = Path(target)
    if path.suffix != LINES:
        raise UserError(f"--output {path}", f"a name ending in {LINES}", f"write {path.stem}{LINES}")
    if not overwrite:
        refuse_existing([path])
    pairs: dict[str, str] = {}  # the first answer to a question stays
    for file in stdlib_sources():
        for question, answer in documented_functions(file.read_text(encoding="utf-8")):
            pairs.setdefault(question, answer)
    with staged_files(path.with_suffix(""), [LINES], overwrite) as partial:
        lines = [
            json.dumps({"messages": question_and_answer(*pair)}, ensure_ascii=False) + "\n" for pair in pairs.items()
        ]
        Path(f"{partial}{LINES}").write_text("".join(lines), encoding="utf-8")
    return len(pairs)


def question_and_answer(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def documented_functions(source: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of every function of a source that has a docstring and is short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old sources spell escapes that are none
        tree = ast.parse(source)
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (summary := summary_of(node)):
            head, docstring, end = node.lineno - 1, node.body[0], node.end_lineno
            signature = textwrap.dedent("\n".join(lines[head : docstring.lineno - 1]))
            answer = textwrap.dedent("\n".join(lines[docstring.end_lineno : end])).strip("\n")
            question = f'{signature}\n    """{summary}"""'
            if signature and len(question) <= QUESTION_CHARACTERS and 0 < len(answer) <= ANSWER_CHARACTERS:
                yield question, answer


def summary_of(node: ast.FunctionDef) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((ast.get_docstring(node) or "").split("\n\n", 1)[0].split())

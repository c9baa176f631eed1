import json
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.evaluation.prompt_file import EvalPrompt, read_prompt_file


@pytest.fixture
def write(tmp_path: Path):
    def written(*rows: object, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return written


def test_prompts_and_turns_with_all_their_keys(write) -> None:
    rows = [
        {"id": "a", "category": "code", "prompt": "def f", "reference": "()"},
        "",
        {"question_id": 7, "turns": ["one", "two"]},
        {"prompt": "naïve \u2028 text"},
    ]
    found = read_prompt_file(write(*rows))
    assert found == [
        EvalPrompt("a", "code", ("def f",), "()"),
        EvalPrompt("7", "all", ("one", "two")),
        EvalPrompt("4", "all", ("naïve \u2028 text",)),
    ]


def test_speed_bench_s_layout_from_parquet(tmp_path: Path) -> None:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    row = {
        "question_id": "x1",
        "category": "coding",
        "sub_category": "python",
        "source": "s",
        "src_id": "1",
        "difficulty": None,
        "multiturn": True,
        "turns": ["Write f.", "Now test it."],
    }
    write_table(Table.from_pylist([row]), tmp_path / "qualitative.parquet")
    assert read_prompt_file(tmp_path / "qualitative.parquet") == [
        EvalPrompt("x1", "coding", ("Write f.", "Now test it."))
    ]


def test_categories_are_chosen_and_unknown_ones_refused(write) -> None:
    path = write({"category": "a", "prompt": "x"}, {"category": "b", "prompt": "y"})
    assert [prompt.category for prompt in read_prompt_file(path, ["b"])] == ["b"]
    with pytest.raises(UserError, match="--category \\['c'\\]; allowed: a, b"):
        read_prompt_file(path, ["b", "c"])


def test_keys_that_are_not_read_are_named_and_counted(write, caplog) -> None:
    read_prompt_file(write({"prompt": "x", "hint": 1}, {"prompt": "y", "hint": 2, "lang": "de"}))
    assert "keys that are not read: hint (2 rows), lang (1 rows)" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "  "}, "row 1 has no text to answer"),
        ({"text": "x"}, "row 1 has no text to answer"),
        ({"turns": []}, "row 1 has no text to answer"),
        ({"turns": ["a", ""]}, "row 1 has no text to answer"),
        ({"turns": "a"}, "row 1 has no text to answer"),
        ({"prompt": "a", "turns": ["b"]}, "row 1: prompt and turns"),
        ({"prompt": "a", "category": 3}, "row 1: category=3"),
        ({"prompt": "a", "reference": ["b"]}, "row 1: reference="),
        ({"prompt": "a", "id": [1]}, "row 1: id="),
        ("{", "row 1 is not JSON"),
        ("[1]", "row 1 is no object"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line(write, row, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_prompt_file(write(row))
    assert "\n" not in str(caught.value)


def test_files_without_prompts_and_ids_that_stand_twice_are_refused(write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_prompt_file(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompt_file(write(""))
    with pytest.raises(UserError, match="the id \\['a'\\] stands twice"):
        read_prompt_file(write({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="a Parquet file"):
        read_prompt_file(tmp_path / "broken.parquet")

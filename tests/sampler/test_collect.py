"""Which prompts are taken, what the ground truth is, and what a shard has to do."""

import json
from pathlib import Path

import pytest

from nld_train import cli
from nld_train.decode.ar import generate_ar
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.evaluation.contexts import EvalContext
from nld_train.evaluation.evaluated_model import ModelChoice, open_evaluated_model
from nld_train.evaluation.prompt_file import EvalPrompt
from nld_train.sampler.collect import (
    CollectionPlan,
    distinct_prompts,
    ground_truths,
    merge_parts,
    open_collection_folder,
)
from nld_train.trajectories.stored_parts import read_part


def prompt(*turns: str, name: str = "x") -> EvalPrompt:
    return EvalPrompt(name, "all", turns)


def test_the_first_of_equal_prompts_stays_in_its_place() -> None:
    prompts = [prompt("a", name="1"), prompt("b"), prompt("a", name="2"), prompt("a", "b"), prompt("c")]
    assert distinct_prompts(prompts) == [prompts[0], prompts[1], prompts[3], prompts[4]]


def plan(**changes) -> CollectionPlan:
    prompts = [prompt("a"), prompt("b", "c"), prompt("d"), prompt("e"), prompt("f")]
    chosen = {"prompts": prompts, "blocks": (4, 8), "policies": ("confidence",), "part": 2}
    return CollectionPlan(**chosen | {"chat": True, "thinking": False, "max_new_tokens": 16} | changes)


def test_every_part_is_of_one_shard() -> None:
    assert plan().parts == 3 and plan(part=5).parts == 1 and plan().contexts(range(3)) == 6
    shares = [list(plan().shard_parts((number, 2))) for number in (1, 2)]
    assert shares == [[0, 2], [1]] and list(plan().shard_parts(None)) == [0, 1, 2]
    assert list(plan().shard_parts((4, 4))) == []


def test_the_size_is_that_of_whole_answers() -> None:
    """Of a context 4 blocks of 4 and 2 of 8, by one policy."""
    size = plan().size(contexts=3)
    assert (
        size.trajectories == 3 * (4 + 2)
        and size.steps == 3 * (4 * 3 + 2 * 7)
        and size.positions == 3 * (4 * 6 + 2 * 28)
    )
    assert plan(policies=("confidence", "hybrid")).tokens(3) == 3 * 16 * 2 * 2


@pytest.fixture
def evaluated(folder: Path):
    return open_evaluated_model(ModelChoice(folder))


def test_the_truth_is_the_reference_or_the_greedy_answer(evaluated) -> None:
    ids = tuple(evaluated.tokenizer.encode("def main").tolist())
    contexts = [(0, EvalContext("1/1", "all", ids, None)), (1, EvalContext("2/1", "all", ids, "self"))]
    decode = DecodeConfig(max_new_tokens=8, eos_token_id=(2, 5))
    known = evaluated.tokenizer.encode("self").tolist()
    (answer,) = generate_ar(evaluated.model, [ids], decode)
    assert 0 < len(known) < 8
    assert ground_truths(evaluated, contexts, decode, chat=False) == [answer.ids, known]
    assert ground_truths(evaluated, contexts, decode, chat=True) == [answer.ids, [*known, 2]]
    short = DecodeConfig(max_new_tokens=1)
    assert ground_truths(evaluated, contexts, short, chat=True) == [answer.ids[:1], known[:1]]


def test_every_turn_of_a_chat_is_a_context(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    rows = [{"turns": ["import os", "def main"], "reference": "x"}, {"turns": ["import os"]}]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--prompts", str(tmp_path / "turns.jsonl"), "--output", str(tmp_path / "out"), "--block", "4"]
    given = ["nld", "sampler", "collect", str(folder), *words, "--max-new-tokens", "4"]
    monkeypatch.setattr("sys.argv", given)
    assert cli.main() == 2 and "prompt 1 has 2 turns; allowed: one without --chat" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", [*given, "--chat"])
    assert cli.main() == 0, capsys.readouterr().err
    for name, placed in read_part(tmp_path / "out", 0).items():
        assert [(each.prompt, each.turn) for each in placed] == [(0, 1), (0, 2), (1, 1)], name
        first, second, again = (each.trajectory for each in placed)
        assert first.top.tolist() == again.top.tolist() != second.top.tolist()


def test_a_folder_keeps_to_one_collection(tmp_path: Path) -> None:
    """Shards that start at once may find the folder of another collection only when they open it."""
    open_collection_folder(tmp_path / "a", {"blocks": [8]}, overwrite=False)
    open_collection_folder(tmp_path / "a", {"blocks": [8]}, overwrite=False)
    with pytest.raises(UserError, match=r"another collection: blocks=\[8\], here \[4\]"):
        open_collection_folder(tmp_path / "a", {"blocks": [4]}, overwrite=False)
    (tmp_path / "a" / "part-00000.json").write_text("{}")
    open_collection_folder(tmp_path / "a", {"blocks": [4]}, overwrite=True)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["manifest.json"]
    (tmp_path / "a" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="does not count its parts"):
        merge_parts(tmp_path / "a")

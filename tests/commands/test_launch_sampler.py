"""`nld launch sampler`: what its jobs are given, and what is refused before they are queued."""

import argparse
import json
from pathlib import Path

import pytest

from nld_train.cli import parse_words
from nld_train.commands.launch_sampler import check_collection_array, collection_work
from nld_train.errors import UserError

WORDS = ["launch", "sampler", "hf", "--prompts", "p.jsonl", "--output", "out", "--part", "2", "--shards", "2"]


def parsed(*more: str) -> argparse.Namespace:
    return parse_words([*WORDS, *more])


def test_shards_collect_and_the_last_job_checks() -> None:
    args = parsed("--block", "8")
    work = collection_work(args.words, args.asked)
    assert (work.shard_command, work.merge_command, work.uses_gpu) == ("sampler collect", "sampler merge", True)
    assert work.words == ("hf", "--prompts", "p.jsonl", "--output", "out", "--part", "2", "--block", "8")
    for command, words in (
        (work.shard_command, (*work.words, "--shard", "1/2")),
        (work.merge_command, work.merge_words),
    ):
        assert parse_words([*command.split(), *words]).command == "sampler"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--overwrite"], "--overwrite with an array"),
        (["--shards", "3"], "--shards 3 of 2 parts"),
        (["--prompts", "none.jsonl"], "no file none.jsonl"),
        (["--policy", "random"], "--policy random"),
    ],
)
def test_what_the_jobs_would_refuse_is_refused_before_them(tmp_path: Path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no folder hf"):
        check_collection_array(parsed())
    (tmp_path / "hf").mkdir()
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abcb"))
    check_collection_array(parsed())
    with pytest.raises(UserError, match=said):
        check_collection_array(parsed(*words))
    args = parse_words(["launch", "sampler", "hf", "--prompts", "p.jsonl", "--shards", "2"])
    with pytest.raises(UserError, match="no --output"):
        collection_work(args.words, args.asked)

"""The scripts of an array of shards and of its merge, for preparations, evaluations and collections; golden files as in
test_sbatch_script.py."""

import argparse
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.commands.launch_data import preparation_work
from nld_train.commands.launch_eval import check_evaluation_array, evaluation_work
from nld_train.commands.launch_sampler import collection_work
from nld_train.errors import UserError
from nld_train.launch.shard_array import (
    ShardArray,
    ShardedWork,
    add_array_options,
    array_of,
    array_script,
    merge_script,
)
from nld_train.launch.site import Site, read_site
from tests.launch.test_sbatch_script import GOLDEN, H100

DATA_WORDS = ("corpus", "a folder/x.jsonl", "--tokenizer", "tok", "--output", "data/my mix")
EVAL_WORDS = ("out/hf", "--prompts", "my prompts.jsonl", "--block", "8,16")


def prepared(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"output": "data/my mix", "overwrite": False, "shard": None, "workers": 4, **changes})


def asked(**changes: object) -> argparse.Namespace:
    values = {"folder": "out/hf", "output": None, "prompts": "p.jsonl", "category": [], "overwrite": False}
    return argparse.Namespace(**{**values, **changes})


def work(kind: str = "data") -> ShardedWork:
    if kind == "eval":
        return evaluation_work("decode", EVAL_WORDS, asked())
    if kind == "sampler":
        words = ("out/hf", "--prompts", "my prompts.jsonl", "--output", "out/trajectories")
        return collection_work(words, asked(output="out/trajectories"))
    return preparation_work(DATA_WORDS, prepared())


def array(kind: str = "data", partition: str | None = None) -> ShardArray:
    return ShardArray(work(kind), shards=7, retries=2, partition=partition)


def options_of(script: str) -> list[str]:
    return [
        word
        for line in script.splitlines()
        if line.startswith("#SBATCH ")
        for word in shlex.split(line.removeprefix("#SBATCH "))
    ]


def is_bash(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["data", "eval", "sampler"])
def test_the_scripts_are_the_golden_ones(kind: str) -> None:
    site = Site(Path("slurm/site.env"), H100, {"NCCL_IB_HCA": "mlx5"})
    path, scripts = (
        GOLDEN / f"{kind}_array.sbatch",
        [array_script(array(kind), site), merge_script(array(kind), site, "1")],
    )
    if os.environ.get("NLD_GOLDEN") == "write":
        path.write_text("".join(scripts))
    assert "".join(scripts) == path.read_text() and all(map(is_bash, scripts))


def test_the_array_has_a_job_for_every_shard(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    script = array_script(array(), site)
    assert "--array=1-7" in options_of(script) and "--partition=gpu" in options_of(script)
    assert f"--output={site.job_folder}/data/my mix.slurm/%A_%a.log" in options_of(script)
    assert f"set -- {shlex.join(DATA_WORDS)}\n" in script
    assert "export NLD_SHARDS=7\n" in script and "export NLD_RETRIES=2\n" in script
    assert "--partition=cpu" in options_of(array_script(array(partition="cpu"), site))


def test_the_merge_waits_for_the_whole_array(site_file: Callable[..., Path]) -> None:
    again = ShardArray(preparation_work(DATA_WORDS, prepared(overwrite=True)), 7, 2, None)
    script = merge_script(again, read_site(site_file()), "123")
    assert "--dependency=afterok:123" in options_of(script) and "--kill-on-invalid-dep=yes" in options_of(script)
    assert "set -- 'data/my mix' --overwrite\n" in script and 'data merge "$@"' in script


def test_a_shard_of_an_evaluation_takes_one_gpu_where_there_are_any(site_file: Callable[..., Path]) -> None:
    (with_gpus, without) = (
        options_of(array_script(array("eval"), read_site(site_file(NLD_GPUS_PER_NODE=count)))) for count in ("8", "0")
    )
    assert "--gpus-per-node=1" in with_gpus and "--exclusive" not in with_gpus
    assert "--exclusive" in without and not any(option.startswith("--gpus") for option in without)
    assert "--exclusive" in options_of(array_script(array("data"), read_site(site_file())))  # a preparation has no use


def test_options_of_the_work_are_handed_on() -> None:
    parser = argparse.ArgumentParser()
    add_array_options(parser)
    args, rest = parser.parse_known_args(["corpus", "--shards", "3", "--output", "out/x", "--workers", "4"])
    made = array_of(args, preparation_work(rest, prepared(output="out/x", overwrite=True)), None)
    assert made.work.words == ("corpus", "--output", "out/x", "--workers", "4") and (made.shards, made.retries) == (
        3,
        3,
    )
    assert made.work.merge_words == ("out/x", "--workers", "4", "--overwrite")
    assert work("eval").words == EVAL_WORDS and work("eval").merge_words == ("out/hf-eval", "--kind", "decode")


@pytest.mark.parametrize(
    ("words", "shard", "said"),
    [
        (["--shards", "0"], None, "--shards 0"),
        (["--shards", "2", "--retries", "-1"], None, "--retries -1"),
        (["--shards", "2"], "1/2", "leave --shard out"),
    ],
)
def test_what_no_array_can_be_is_refused(words: list[str], shard: str | None, said: str) -> None:
    parser = argparse.ArgumentParser()
    add_array_options(parser)
    with pytest.raises(UserError, match=said):
        array_of(parser.parse_args(words), work(), shard)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folder": "nowhere"}, "no folder nowhere"),
        ({"prompts": "nothing.jsonl"}, "no file nothing.jsonl"),
        ({"overwrite": True}, "--overwrite with an array"),
        ({"shards": 3}, "--shards 3 of 2 prompts"),
        ({"output": "done"}, "done/decode.jsonl exists already"),
    ],
)
def test_what_the_jobs_would_refuse_is_refused_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("out/hf", "done"):
        Path(folder).mkdir(parents=True)
    Path("done/decode.jsonl").touch()
    Path("p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    shards = changes.pop("shards", 2)
    check_evaluation_array(argparse.Namespace(asked=asked(), what="decode", shards=2))
    with pytest.raises(UserError, match=said):
        check_evaluation_array(argparse.Namespace(asked=asked(**changes), what="decode", shards=shards))

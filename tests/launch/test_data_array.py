import argparse
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.launch.data_array import DataArray, array_of, array_script, data_array_parser, merge_script
from nld_train.launch.site import read_site

WORDS = ("corpus", "a folder/x.jsonl", "--tokenizer", "tok", "--output", "data/my mix")


def array(**changes: object) -> DataArray:
    values = {"words": WORDS, "output": "data/my mix", "merge_words": ("data/my mix",), "shards": 7, "retries": 2}
    return DataArray(**{**values, "partition": None, **changes})


def options_of(script: str) -> list[str]:
    return [
        word
        for line in script.splitlines()
        if line.startswith("#SBATCH ")
        for word in shlex.split(line.removeprefix("#SBATCH "))
    ]


def test_the_array_has_a_job_for_every_shard(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file())
    script = array_script(array(), site)
    assert "--array=1-7" in options_of(script) and "--partition=gpu" in options_of(script)
    assert f"--output={site.job_folder}/data/my mix.slurm/%A_%a.log" in options_of(script)
    assert f"set -- {shlex.join(WORDS)}\n" in script
    assert "export NLD_SHARDS=7\n" in script and "export NLD_RETRIES=2\n" in script
    assert "--partition=cpu" in options_of(array_script(array(partition="cpu"), site))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_merge_waits_for_the_whole_array(site_file: Callable[..., Path]) -> None:
    script = merge_script(array(merge_words=("data/my mix", "--overwrite")), read_site(site_file()), "123")
    assert "--dependency=afterok:123" in options_of(script) and "--kill-on-invalid-dep=yes" in options_of(script)
    assert "set -- 'data/my mix' --overwrite\n" in script and 'data merge "$@"' in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def prepared(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"output": "out/x", "overwrite": False, "shard": None, "workers": 4, **changes})


def test_options_of_the_preparation_are_handed_on() -> None:
    args, rest = data_array_parser().parse_known_args(
        ["corpus", "--shards", "3", "--output", "out/x", "--workers", "4"]
    )
    made = array_of(args, rest, prepared(overwrite=True))
    assert made.words == ("corpus", "--output", "out/x", "--workers", "4")
    assert made.merge_words == ("out/x", "--workers", "4", "--overwrite") and (made.shards, made.retries) == (3, 3)


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (["--shards", "0"], {}, "--shards 0"),
        (["--shards", "2", "--retries", "-1"], {}, "--retries -1"),
        (["--shards", "2"], {"shard": "1/2"}, "leave --shard out"),
    ],
)
def test_what_no_array_can_be_is_refused(words: list[str], changes: dict[str, object], said: str) -> None:
    args, rest = data_array_parser().parse_known_args(words)
    with pytest.raises(UserError, match=said):
        array_of(args, rest, prepared(**changes))

"""The `nld` command as people call it: every user error is one line on stderr and status 2."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nld_train import cli, recipe


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def nld(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`nld WORDS...`, in this process: starting Python anew would take longer than the command."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["nld", *map(str, words)])
        try:
            status = cli.main()
        except SystemExit as exit:  # argparse, for --help and its own errors
            status = int(exit.code or 0)
        return Done(status, *capsys.readouterr())

    return run


def test_the_command_is_installed() -> None:
    done = subprocess.run([Path(sys.executable).with_name("nld"), "train", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_conversation_is_prepared_and_shown(nld: Callable[..., Done], prepared: Path, tmp_path: Path) -> None:
    source, prefix, tokenizer = tmp_path / "a.jsonl", tmp_path / "chat", prepared / "tokenizer"
    source.write_text('{"question": "def size():", "answer": "return 1"}\n{"question": "x", "answer": "pass"}\n')
    assert (
        nld("data", "prepare-chat", source, "--tokenizer", tokenizer, "--output", prefix, "--workers", 1).returncode
        == 0
    )
    words = ["data", "inspect-chat", prefix, "--tokenizer", tokenizer, "--block-size", 4]
    done = nld(*words, "--conversation", 1, "--html", tmp_path / "page.html")
    assert done.returncode == 0 and "⟦pass<|im_end|>⟧" in done.stdout.replace("│", "")
    assert "blocks of 4" in done.stdout and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert nld(*words).stdout != nld(*words, "--noise-seed", 5).stdout
    done = nld(*words, "--conversation", 7)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "--conversation 7" in done.stderr


@pytest.mark.parametrize("name", recipe.recipe_names())
def test_every_recipe_dry_runs(nld: Callable[..., Done], name: str) -> None:
    done = nld("train", name, "--dry-run")
    assert done.returncode == 0, done.stderr
    for said in ("parameters", "tokens", "FLOPs", "checkpoint"):
        assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "tiny_stage1"), "did you mean tiny_stage1_ar"),
        (("train", "tiny_stage1_ar", "train.iteration=5"), "did you mean train.iterations"),
        (("train", "tiny_stage1_ar", "train.iterations=five"), "train.iterations"),
        (("train", "tiny_stage1_ar", "--nproc", "3"), "train.global_batch=8"),
        (("train", "tiny_stage1_ar", "parallel.tensor=8", "parallel.world_size=8"), "parallel.tensor=8"),
        (("train", "nld_8b_stage1_ar", "parallel.tensor=16"), "use parallel.tensor=8 parallel.pipeline=2"),
        (("train", "tiny_stage2_joint", "parallel.context=32", "--nproc", "32"), "chunk"),
        (("train", "nld_8b_stage1_ar"), "nld_8b_stage1_ar on 256 ranks"),
        (("train", "tiny_stage1_ar", "data.blend=nowhere/x"), "nowhere/x"),
        (("train", "tiny_stage1_ar", "--nodes", "2"), "--meet HOST:PORT"),
        (("launch", "tiny_stage1_ar", "--executor", "slurm", "--site", "nowhere.env"), "slurm/site.env.example"),
        (("launch", "tiny_stage1_ar", "--executor", "local", "--after", "out/x"), "--executor slurm"),
        (("jobs", "nowhere"), "nowhere/run.json"),
        (("show", "visibility", "--length", "4000"), "256"),
    ],
)
def test_bad_input_is_one_line(nld: Callable[..., Done], words: tuple[str, ...], said: str) -> None:
    done = nld(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("nld: ")
    assert done.stderr.count("\n") == 1


def test_data_of_another_tokenizer_is_refused(nld: Callable[..., Done], prepared: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(prepared / "tokenizer", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    done = nld(
        "train", "tiny_stage1_ar", f"data.blend={prepared}/data/a", f"data.tokenizer={other}", f"output={tmp_path}/out"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was made with tokenizer" in done.stderr
    assert not (tmp_path / "out").exists()


def test_overrides_stand_before_and_after_options(nld: Callable[..., Done]) -> None:
    done = nld("train", "tiny_stage1_ar", "train.iterations=50", "--dry-run", "log.interval=7")
    assert done.returncode == 0
    assert done.stdout.count("<- override") == 2


@pytest.mark.slow  # it loads Transformer Engine: 6 s
def test_the_doctor_fails_where_a_run_would(nld: Callable[..., Done], prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    data = (f"data.blend={tmp_path}/data/a", f"data.tokenizer={tmp_path}/tokenizer", f"output={tmp_path}/out")
    assert nld("doctor").returncode == 0
    sound = nld("doctor", "tiny_stage1_ar", "train.iterations=20", "optimizer.warmup_iterations=0", *data)
    assert sound.returncode == 0, sound.stdout
    assert not (tmp_path / "out").exists(), "it changes nothing"
    (tmp_path / "data" / "a.idx").unlink()
    broken = nld("doctor", "tiny_stage1_ar", *data, "--json", tmp_path / "doctor.json")
    assert broken.returncode == 1
    assert "a run would fail: data" in broken.stdout
    assert json.loads((tmp_path / "doctor.json").read_text())["ok"] is False
    assert nld("doctor", "tiny_stage1").returncode == 2


@pytest.mark.parametrize("command", [None, *(name for name in cli.COMMANDS if name != "data")])
def test_help_waits_for_no_library(command: str | None) -> None:
    """`nld data` is data_prep's: its options take their defaults from files that import numpy."""
    code = (
        "import sys; from nld_train import cli; cli.command_parser({!r}).format_help(); "
        "print([name for name in ('numpy', 'rich', 'torch', 'tokenizers', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code.format(command)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_teaches_by_example(nld: Callable[..., Done]) -> None:
    for words in (
        ("--help",),
        ("train", "--help"),
        ("data", "prepare", "--help"),
        ("report", "--help"),
        ("doctor", "--help"),
        ("launch", "--help"),
        ("jobs", "--help"),
    ):
        assert "nld" in nld(*words).stdout


def test_visibility_is_drawn(nld: Callable[..., Done], tmp_path: Path) -> None:
    assert nld("show", "visibility", "--svg", tmp_path / "v.svg").returncode == 0
    assert (tmp_path / "v.svg").read_text().startswith("<svg")


def test_overrides_stand_behind_and_between_the_options_of_every_command_that_takes_some() -> None:
    assert set(cli.WITH_OVERRIDES) <= set(cli.COMMANDS)
    words = ["launch", "tiny_stage1_ar", "name=a", "--executor", "slurm", "train.seed=2", "--nodes", "2", "output=x"]
    args = cli.parse_words(words)
    assert (args.override, args.nodes) == (["name=a", "train.seed=2", "output=x"], 2)
    assert cli.parse_words(["doctor", "tiny_stage1_ar", "--verify", "name=a"]).override == ["name=a"]
    requeue = ["requeue", "tiny_stage1_ar", "--status", "1", "name=a", "--how", "left", "output=b"]
    assert cli.parse_words(requeue).override == ["name=a", "output=b"]


def test_a_path_that_cannot_be_used_is_one_line(nld, tmp_path) -> None:
    done = nld("report", "x" * 300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "too long; allowed: a path" in done.stderr


def test_a_message_with_line_ends_and_commands_to_a_terminal_is_one_line(nld) -> None:
    done = nld("train", "none\nof\x1b[2J/x.py", "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "\x1b" not in done.stderr

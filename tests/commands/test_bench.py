"""`nld bench` as it is typed; the same parts without the `nld` command and its dependencies."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from nld_train.bench.outcome import outcome_markdown, outcomes_from_json
from nld_train.commands.bench import bench_main
from nld_train.errors import UserError

TINY = {
    "attention": ["--length=40", "--heads=2", "--kv-heads=1", "--head-dim=16", "--block-size=8", "--profile"],
    "loss": ["--rows=20", "--vocabulary=300", "--hidden=16"],
    "step": ["model.layers=1", "model.hidden=64", "model.ffn=96", "data.sequence_length=32"],
}


@pytest.mark.parametrize("part", TINY)
def test_every_part_prints_its_table_and_writes_its_figures(part: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "figures.json"
    words = [part, "--device=cpu", "--rounds=2", f"--json={file}", *TINY[part]]
    assert bench_main(words) == 0
    printed = capsys.readouterr().out
    (outcome,) = outcomes_from_json(file.read_text())
    assert outcome_markdown(outcome) in printed
    ran = [name for name, one in outcome.figures["results"].items() if len(one["seconds"]) == 2]
    assert len(ran) >= 2
    assert outcome.environment["torch"] == torch.__version__.split("+")[0]
    assert outcome.environment["device"].startswith("CPU")


def test_check_exits_with_1_where_a_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from nld_train.attention import reference
    from nld_train.attention.backends import BACKENDS, choose_backend

    def forgetful(query, key, value, layout, scale, documents=None):
        """Lets documents see each other."""
        return reference.attend_reference(query, key, value, layout, scale)

    words = ["check", "--device=cpu", "--draws=1"]
    assert bench_main(words) == 0
    assert "WRONG" not in capsys.readouterr().out
    monkeypatch.setitem(BACKENDS, "sdpa", forgetful)
    choose_backend.cache_clear()
    try:
        assert bench_main(words) == 1
    finally:
        choose_backend.cache_clear()
    lines = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert lines and all("packed" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["step", "--recipe=tiny_stage1_ar"], "a recipe of a joint stage"),
        (["step", "--recipe=tiny_drafter"], "a recipe of a joint stage"),
        (["step", "model.layer=1"], "model.layers"),
        (["attention", "--device=cuda"], "torch finds no GPU here"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys) -> None:
    if "--device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert bench_main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nld: ") and said in line


def test_sizes_below_one_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        bench_main(["attention", "--length=0"])
    assert "give 1 or more" in capsys.readouterr().err


def test_the_nld_command_knows_it() -> None:
    from nld_train.cli import parse_words

    args = parse_words(["bench", "step", "--plain", "--rounds", "3", "train.micro_batch=2", "model.layers=1"])
    assert (args.override, args.plain, args.rounds) == (["train.micro_batch=2", "model.layers=1"], True, 3)
    with pytest.raises((SystemExit, UserError)):
        parse_words(["bench", "nothing"])


@pytest.mark.slow
def test_torch_is_all_that_it_needs() -> None:
    """Of what the project depends on; so it runs on a machine where nothing of it is installed."""
    root = Path(__file__).parents[2]
    pins = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = {"torch", "numpy"}
    foreign = {pin.split("=")[0].split(">")[0].strip().replace("-", "_") for pin in pins} - needed
    foreign |= {"megatron", "transformer_engine"}
    source = (
        "import json, sys; from nld_train.commands.bench import bench_main\n"
        "for words in json.loads(sys.argv[1]): assert bench_main(words) == 0\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    runs = [["check", "--device=cpu", "--draws=1"]]
    runs += [[part, "--device=cpu", "--rounds=1", *words] for part, words in TINY.items()]
    runs[-1].append("--plain")
    done = subprocess.run(
        [sys.executable, "-c", source, json.dumps(runs)], cwd=root, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & foreign

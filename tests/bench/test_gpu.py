"""benchmarks/gpu.sh: the dry run is the run itself at toy size."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from nld_train.bench.outcome import BenchOutcome, outcomes_from_json
from nld_train.bench.summary import summary_table

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(SCRIPT), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["correctness"], marks=pytest.mark.slow),
        pytest.param(["correctness", "attention", "LM-head loss", "step"], marks=pytest.mark.long),
    ],
    ids=len,
)
def test_the_dry_run_checks_measures_and_sums_up(parts: list[str], tmp_path: Path) -> None:
    kept = set((ROOT / "benchmarks" / "results").glob("*"))
    done = run("--dry-run", *(["--only", "check"] if len(parts) == 1 else []), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.rindex("| correctness") :].splitlines()
    for line, what in zip(table, parts, strict=False):
        assert line.startswith(f"| {what}")
    assert " ok " in table[0]
    assert "SHORT" not in done.stdout, "aims are a GPU's"
    assert set((ROOT / "benchmarks" / "results").glob("*")) == kept, "a dry run keeps no results"


@pytest.mark.long
def test_no_part_outlives_its_time() -> None:
    start = time.monotonic()
    done = run("--dry-run", "--only", "check", "--seconds", "1")
    assert done.returncode == 1
    assert "check: " in done.stdout.splitlines()[-1]
    assert time.monotonic() - start < 40


def test_the_parts_share_the_time_and_stay_under_8_minutes(gpu: ModuleType, monkeypatch, tmp_path: Path) -> None:
    given: list[float] = []

    def part_that_takes_all(part, seconds, file, dry):
        given.append(seconds)
        clock[0] += seconds

    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "run_part", part_that_takes_all)
    seconds = 460
    gpu.run_parts(gpu.PARTS, type("Args", (), {"seconds": seconds, "dry_run": True}), tmp_path)
    assert sum(given) == pytest.approx(seconds) and seconds < 480
    assert given[0] / given[1] == pytest.approx(gpu.PARTS[0].share / gpu.PARTS[1].share)


def outcome(part: str, figures: dict, cuda: bool = True, wrong: bool = False) -> BenchOutcome:
    environment = {"device": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"} | ({"cuda": "13.0"} if cuda else {})
    return BenchOutcome(part, "sizes", ["a"], [["b"]], [], figures, wrong, environment)


def timed(seconds: float, useful: float = 1e12, peak: int = 100) -> dict:
    return {"seconds": [seconds], "useful": useful, "peak": peak, "refusal": None}


def test_the_summary_judges_what_a_gpu_gave() -> None:
    attention = {"ours: flex": timed(2.0), "ours: te": timed(1.0), "causal: cuDNN": timed(0.85)}
    step = {"ours, stage 2 (joint)": timed(1.0, useful=500e12)}
    lines = summary_table(
        [
            outcome("correctness", {"findings": [{"draws": 3, "verdict": "ok", "whole": 1e-3}], "asked": 1}),
            outcome("attention", {"results": attention}),
            outcome("LM-head loss", {"results": {"plain": timed(1, peak=100), "ours": timed(1, peak=20)}}),
            outcome("step", {"results": step, "peak_flops": 989e12}),
        ]
    ).splitlines()[2:]
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [(cells[0], cells[3]) for cells in found] == [
        ("correctness", "ok"),
        ("attention", "reached"),
        ("attention", "reached"),
        ("LM-head loss", "SHORT"),
        ("step", "reached"),
    ]
    assert "85% of causal (ours: te)" in found[1][1]
    assert found[2][1] == "2.00 times as fast as whole-row flex"
    assert found[4][1] == "50.6% MFU on useful FLOPs"


@pytest.mark.parametrize(
    ("findings", "asked", "wrong", "said"),
    [
        ([{"draws": 200, "verdict": "ok", "whole": 1e-3}], 2, False, "cut short"),
        ([{"draws": 7, "verdict": "WRONG: draw 7 is out of bounds", "whole": 1.0}], 1, True, "WRONG"),
    ],
)
def test_less_than_what_was_asked_is_not_called_right(findings, asked, wrong, said) -> None:
    assert said in summary_table([outcome("correctness", {"findings": findings, "asked": asked}, wrong=wrong)])


def test_results_are_kept_by_date_and_device(gpu: ModuleType, tmp_path: Path) -> None:
    one = outcome("step", {"results": {}, "peak_flops": None})
    page = gpu.keep([one], "the summary", tmp_path)
    assert page.name == "2026-01-02T0304-NVIDIA-H200.md"
    assert "the summary" in page.read_text() and "| a |" in page.read_text()
    assert outcomes_from_json(page.with_suffix(".json").read_text()) == [one]

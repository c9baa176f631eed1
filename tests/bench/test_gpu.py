"""benchmarks/gpu.sh: the dry run is the run itself at toy size."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from nld_train.bench.head_loss import CHUNKED, PLAIN
from nld_train.bench.kernel_check import ANY_INPUTS
from nld_train.bench.outcome import NOTHING, BenchOutcome, outcomes_from_json
from nld_train.bench.step_bench import AR, BRIDGE_AR, BRIDGE_JOINT, JOINT, MEGATRON_LAYERS, PLAIN_LAYERS
from nld_train.bench.summary import (
    CUT,
    FAILED,
    NO_GPU,
    SHORT,
    SKIPPED,
    WRONG,
    SummaryLine,
    summary_lines,
    summary_table,
)
from nld_train.bench.training import LOSSES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
# A part's name on the command line -> in the table.
WRITTEN = {
    "check": "correctness",
    "attention": "attention",
    "loss": "LM-head loss",
    "step": "step",
    "training": "training",
}
STEPS = {JOINT: "ours", BRIDGE_JOINT: "theirs", AR: "ar", BRIDGE_AR: "their_ar"}


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
        pytest.param(["check"], marks=pytest.mark.slow),
        pytest.param(["check", "attention", "loss", "step"], marks=pytest.mark.long),
        pytest.param(["training"], marks=[pytest.mark.long, pytest.mark.megatron]),
    ],
    ids=lambda parts: parts[-1],
)
def test_the_dry_run_ends_in_one_table_and_the_same_in_json(parts: list[str], tmp_path: Path) -> None:
    kept = set((ROOT / "benchmarks" / "results").glob("*"))
    done = run("--dry-run", "--only", *parts, "--output", str(tmp_path / "found"), "--seconds", "1400")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "found").glob("*.json")
    found = json.loads(file.read_text())
    lines = [SummaryLine(**line) for line in found["table"]]
    assert done.stdout.endswith(f"{summary_table(lines)}\n"), "what is printed is what is kept"
    assert summary_table(lines) in file.with_suffix(".md").read_text()
    assert {"date", "device", "torch", "cores", "memory"} <= found["machine"].keys()
    of_part = {name: [line for line in lines if line.part == WRITTEN[name]] for name in parts}
    assert all(any(line.figure != NOTHING for line in mine) for mine in of_part.values())
    for line in lines:
        assert line.verdict not in (WRONG, FAILED, SHORT), f"{line}: aims are a GPU's"
        assert line.reason or line.verdict != SKIPPED, f"{line}: why?"
    not_asked = {line.part for line in lines if line.reason == "not asked for (--only)"}
    assert not_asked == {title for name, title in WRITTEN.items() if name not in parts}
    if "training" in parts:
        *curves, resumed = of_part["training"]
        assert (resumed.figure, resumed.verdict) == ("2 of 2 steps have every figure the same", "ok")
        assert [line.case for line in curves] == [f"{loss}, bf16 beside float32" for loss in LOSSES]
    assert set((ROOT / "benchmarks" / "results").glob("*")) == kept, "a dry run keeps no results of its own accord"


@pytest.mark.long
def test_no_part_outlives_its_time() -> None:
    start = time.monotonic()
    done = run("--dry-run", "--only", "check", "--seconds", "8")
    assert time.monotonic() - start < 60
    last = done.stdout[done.stdout.rindex("| correctness") :]
    assert "skipped" in last or "cut short" in last or "FAILED" in last


def test_a_part_that_does_not_fit_is_named(gpu: ModuleType, tmp_path: Path) -> None:
    lines, outcomes = gpu.run_parts(asked(seconds=50, dry_run=False), tmp_path)
    assert not outcomes
    for part in gpu.PARTS:
        (line,) = [line for line in lines if line.part == part.title]
        assert line.verdict == SKIPPED
        assert f"and it takes {part.least}" in line.reason or line.reason == "no Megatron here"


def test_the_parts_share_the_time_and_stay_under_8_minutes(gpu: ModuleType, monkeypatch, tmp_path: Path) -> None:
    given: list[float] = []

    def part_that_takes_all(part, seconds, file, dry):
        given.append(seconds)
        clock[0] += seconds

    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "run_part", part_that_takes_all)
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    seconds = 460
    gpu.run_parts(asked(seconds), tmp_path)
    assert sum(given) == pytest.approx(seconds) and seconds < 480
    assert all(had > part.least for had, part in zip(given, gpu.PARTS, strict=True))
    assert given[0] / given[1] == pytest.approx(gpu.PARTS[0].share / gpu.PARTS[1].share)


def test_what_needs_megatron_says_so_and_leaves_its_time_to_the_others(
    gpu: ModuleType, monkeypatch, tmp_path: Path
) -> None:
    given: list[float] = []
    monkeypatch.setattr(gpu, "run_part", lambda part, seconds, file, dry: given.append(seconds))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    lines, _ = gpu.run_parts(asked(460), tmp_path)
    assert lines == [SummaryLine("training", gpu.ALL, verdict=SKIPPED, reason="no Megatron here")]
    of_others = sum(part.share for part in gpu.PARTS if not part.megatron)
    assert given[0] == pytest.approx(460 * gpu.PARTS[0].share / of_others, rel=1e-3)


def test_a_part_that_dies_is_a_failure_and_takes_what_it_started_with_it(
    gpu: ModuleType, monkeypatch, tmp_path: Path
) -> None:
    mark = tmp_path / "alive"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n(sleep 3; touch {mark}) &\nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(script))
    lines, _ = gpu.run_parts(asked(460, only=["check"]), tmp_path)
    assert [(line.verdict, line.reason) for line in lines if line.part == "correctness"] == [(FAILED, "exit status 7")]
    time.sleep(4)
    assert not mark.exists()


def asked(seconds: float, dry_run: bool = True, only: list[str] | None = None) -> argparse.Namespace:
    return argparse.Namespace(seconds=seconds, dry_run=dry_run, only=only)


def outcome(part: str, figures: dict, cuda: bool = True, wrong: bool = False) -> BenchOutcome:
    environment = {"device": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"} | ({"cuda": "13.0"} if cuda else {})
    return BenchOutcome(part, "sizes", ["a"], [["b"]], [], figures, wrong, environment)


def timed(seconds: float, useful: float = 1e12, peak: int = 100) -> dict:
    return {"seconds": [seconds], "useful": useful, "peak": peak, "refusal": None}


def judged(outcomes: list[BenchOutcome]) -> list[tuple[str, str, str]]:
    return [(line.part, line.case, line.verdict) for line in summary_lines(outcomes)]


def finding(**changed: object) -> dict:
    fields = {"what": "attention: flex", "inputs": "L 300", "asked": 3, "draws": 3, "whole": 1e-3}
    return {**fields, "failed": None, "refused": None, **changed}


def correctness(*findings: dict, asked: int = 1, wrong: bool = False) -> BenchOutcome:
    return outcome("correctness", {"findings": list(findings), "asked": asked, "bound": 1e-2}, wrong=wrong)


def refused(why: str) -> dict:
    return {"seconds": [], "useful": 1.0, "peak": None, "refusal": why}


def test_every_backend_stands_beside_plain_causal_attention() -> None:
    results = {
        "causal: cuDNN": timed(0.85),
        "ours: flex": timed(2.0),
        "ours: te": timed(1.0),
        "ours: flex+fa4": refused("without flash_attn"),
    }
    lines = summary_lines([outcome("attention", {"results": results})])
    assert [(line.case, line.verdict) for line in lines] == [
        ("causal: cuDNN", NOTHING),
        ("ours: flex", NOTHING),
        ("ours: te", "reached"),
        ("ours: flex+fa4", SKIPPED),
        ("ours: te beside whole-row flex", "reached"),
    ]
    assert [line.figure for line in lines][1:3] == ["0.5 TFLOP/s, 42% of causal", "1 TFLOP/s, 85% of causal"]
    assert lines[3].reason == "without flash_attn"


def test_of_the_lm_head_loss_ours_is_judged_by_its_memory() -> None:
    results = {PLAIN: timed(1, peak=900), CHUNKED: timed(1, peak=100), "gradients in the forward": timed(1, peak=200)}
    assert judged([outcome("LM-head loss", {"results": results})]) == [
        ("LM-head loss", PLAIN, NOTHING),
        ("LM-head loss", CHUNKED, "reached"),
        ("LM-head loss", "gradients in the forward", NOTHING),
    ]


def step_outcome(kind: str, cuda: bool = True, planned: float = 100, **results: dict) -> BenchOutcome:
    named = {name: results[key] for name, key in STEPS.items() if key in results}
    return outcome("step", {"results": named, "peak_flops": 989e12, "kind": kind, "planned": planned}, cuda)


def test_a_step_of_megatron_is_judged_by_speed_and_memory() -> None:
    steps = {"ours": timed(1, 500e12, 100), "theirs": timed(2, 1, 250), "ar": timed(1), "their_ar": timed(0.9)}
    assert judged([step_outcome(MEGATRON_LAYERS, planned=105, **steps)]) == [
        ("step", JOINT, "reached"),
        ("step", "memory beside the plan", "reached"),
        ("step", f"{JOINT} beside {BRIDGE_JOINT}", "reached"),
        ("step", f"{AR} beside {BRIDGE_AR}", "SHORT"),
    ]
    assert ("step", "memory beside the plan", "SHORT") in judged([step_outcome(MEGATRON_LAYERS, planned=150, **steps)])
    assert {verdict for _, _, verdict in judged([step_outcome(MEGATRON_LAYERS, False, **steps)])} == {NO_GPU}


def test_without_megatron_its_steps_and_the_plan_are_skipped_by_name() -> None:
    lines = summary_lines([step_outcome(PLAIN_LAYERS, ours=timed(1, 500e12))])
    skipped = {line.case for line in lines if line.verdict == SKIPPED and PLAIN_LAYERS in line.reason}
    assert skipped == {BRIDGE_JOINT, BRIDGE_AR, "memory beside the plan"}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (correctness(finding()), "ok"),
        (correctness(finding(draws=1)), CUT),
        (correctness(finding(draws=2, failed="draw 1 is out of bounds"), wrong=True), WRONG),
        (correctness(finding(draws=0, asked=0, refused="without flash_attn", inputs=ANY_INPUTS), asked=0), SKIPPED),
    ],
    ids=["whole", "cut", "wrong", "refused"],
)
def test_less_than_what_was_asked_is_not_called_right(found: BenchOutcome, verdict: str) -> None:
    assert judged([found]) == [("correctness", "attention: flex", verdict)]


def test_inputs_that_were_never_reached_are_counted() -> None:
    assert judged([correctness(finding(), asked=4)])[-1] == ("correctness", "3 more inputs", SKIPPED)


def test_results_are_kept_by_date_and_device(gpu: ModuleType, tmp_path: Path) -> None:
    one = outcome("step", {"results": {}, "peak_flops": None})
    line = SummaryLine("step", gpu.ALL, verdict=SKIPPED, reason="no time")
    page = gpu.keep(gpu.Finished([line], [one], one.environment), tmp_path)
    assert page.name == "2026-01-02T030405-NVIDIA-H200.md"
    assert "skipped: no time" in page.read_text() and "| a |" in page.read_text()
    kept = json.loads(page.with_suffix(".json").read_text())
    assert outcomes_from_json(json.dumps(kept["outcomes"])) == [one] and kept["machine"] == one.environment
    assert kept["table"] == [vars(line)]

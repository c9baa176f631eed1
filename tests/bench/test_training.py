"""What the short training says of two curves and of a resumed run; tests/bench/test_gpu.py trains one."""

import sys
import time
from pathlib import Path

import pytest

from nld_train.bench.measure import TimeBudget
from nld_train.bench.nld_commands import CommandFailure, NldCommands, failure_said
from nld_train.bench.training import CURVE_BOUND, EARLY, EARLY_BOUND, WINDOW, curve_cases, resumed_case

STEPS = 2 * WINDOW + 3


def curve(factor: float = 1.0, steps: int = STEPS) -> list[dict[str, float]]:
    return [{"step": n, "AR loss": factor * (5 - n / 10), "diffusion loss": 7 - n / 10} for n in range(1, steps + 1)]


def verdicts(found: list[dict[str, float]], expected: list[dict[str, float]]) -> list[str]:
    return [case.verdict for case in curve_cases(found, expected)]


def test_a_curve_within_the_bound_is_right_and_one_beyond_it_wrong() -> None:
    assert verdicts(curve(1 + 0.9 * EARLY_BOUND), curve()) == ["ok", "ok"]
    assert verdicts(curve(1 - 1.1 * EARLY_BOUND), curve()) == ["WRONG", "ok"]
    assert verdicts(curve(float("nan")), curve()) == ["WRONG", "ok"]


def test_the_last_window_counts_though_it_is_short() -> None:
    """Later steps have a bound of their own: trainings drift apart."""
    for factor, verdict in ((1 + 0.9 * CURVE_BOUND, "ok"), (1 + 1.1 * CURVE_BOUND, "WRONG")):
        found = curve()
        for entry in found[EARLY * WINDOW :]:
            entry["diffusion loss"] *= factor
        assert verdicts(found, curve()) == ["ok", verdict]


@pytest.mark.parametrize("missing", [STEPS - 1, 0])
def test_a_curve_of_fewer_steps_is_wrong(missing: int) -> None:
    assert verdicts(curve(steps=missing), curve()) == ["WRONG"]
    assert verdicts(curve(steps=missing), curve(steps=missing)) == (["ok", "ok"] if missing else ["WRONG"])


def test_one_bit_makes_a_resumed_run_another_one() -> None:
    assert resumed_case(curve(), curve(), WINDOW).verdict == "ok"
    other = curve()
    other[-1]["AR loss"] *= 1 + 2**-52
    found = resumed_case(curve(), other, WINDOW)
    assert (found.verdict, found.figure[:8]) == ("WRONG", "12 of 13")
    assert resumed_case(curve(), curve(steps=STEPS - 1), WINDOW).verdict == "WRONG"
    assert resumed_case(curve(steps=WINDOW), curve(steps=WINDOW), WINDOW).verdict == "WRONG", "nothing was compared"


def test_a_command_that_fails_says_why_and_one_that_hangs_is_ended(tmp_path: Path, monkeypatch) -> None:
    with NldCommands(tmp_path, TimeBudget(60)) as commands, pytest.raises(CommandFailure) as failure:
        commands.run("training", ["train", "no_such_recipe"])
    assert failure.value.what == "training" and not failure.value.cut
    assert str(failure.value).startswith("status 2: nld: ") and "no_such_recipe" in str(failure.value)
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    began = time.monotonic()
    with NldCommands(tmp_path, TimeBudget(1)) as commands, pytest.raises(CommandFailure) as failure:
        commands.run("training", [])
    assert failure.value.cut and time.monotonic() - began < 20
    assert commands.started[0].process.poll() is not None


def test_a_ranks_line_says_more_than_the_last_one() -> None:
    assert (
        failure_said("a\nrank 0 failed: no kernel\n  full log: x\ntiny failed; see y\n") == "rank 0 failed: no kernel"
    )
    assert failure_said("a\nb\n\n") == "b"
    assert failure_said("") == "without a word"

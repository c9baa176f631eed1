"""All parts in one short table: the figures beside their aims. Only GPUs are judged, because the aims are for them."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from nld_train.bench.attention import CAUSAL, OURS
from nld_train.bench.outcome import NOTHING, BenchOutcome, aligned_table
from nld_train.bench.step_bench import BRIDGE_JOINT, JOINT, NAIVE

HEAD = ["", "found", "wanted", ""]
REACHED, SHORT = "reached", "SHORT"
SummaryLine = tuple[str, str, str, str]  # what, found, wanted, verdict
PartResults = dict[str, Any]  # the figures of one part, by the alternative's name


def summary_table(outcomes: Sequence[BenchOutcome]) -> str:
    """The table of all outcomes; a part that is missing has no line."""
    makers = {
        "correctness": _correctness_lines,
        "attention": _attention_lines,
        "LM-head loss": _head_loss_lines,
        "step": _step_lines,
    }
    rows = []
    for outcome in outcomes:
        for what, found, wanted, judged in makers[outcome.part](outcome):
            is_aim = judged in (REACHED, SHORT)
            rows.append([what, found, wanted, "no GPU" if is_aim and "cuda" not in outcome.environment else judged])
    return aligned_table(HEAD, rows)


def _correctness_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    findings = outcome.figures["findings"]
    ran = [one for one in findings if one["draws"]]
    whole, asked = sum(one["verdict"] == "ok" for one in findings), outcome.figures["asked"]
    draws = sum(one["draws"] for one in ran)
    worst = max((one["whole"] for one in ran), default=float("nan"))
    found = f"{whole} of {asked} as asked, {draws} draws, worst {worst:.1e}"
    if outcome.wrong:
        return [("correctness", found, "all, none out of bounds", "WRONG")]
    return [("correctness", found, "all, none out of bounds", "ok" if whole == asked else "cut short")]


def _attention_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    results = _results_that_ran(outcome)
    mine = {name: one for name, one in results.items() if name.startswith(OURS)}
    if not mine:
        return [("attention", "none of ours ran", NOTHING, NOTHING)]
    best = max(mine, key=lambda name: _useful_rate(mine[name]))
    lines = []
    ceiling = max((_useful_rate(one) for name, one in results.items() if name.startswith(CAUSAL)), default=None)
    if ceiling is not None:
        share = _useful_rate(mine[best]) / ceiling
        found = f"{_useful_rate(mine[best]) / 1e12:.3g} TFLOP/s, {share:.0%} of causal ({best})"
        lines.append(("attention", found, "at least 80 %", _reached_or_short(share >= 0.8)))
    flex = f"{OURS}flex"
    if flex in results and best != flex:
        times = _median_seconds(results[flex]) / _median_seconds(mine[best])
        lines.append(
            (
                "attention",
                f"{times:.2f} times as fast as whole-row flex",
                "at least 1.5",
                _reached_or_short(times >= 1.5),
            )
        )
    return lines


def _head_loss_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    results = _results_that_ran(outcome)
    if len(results) < 2:
        return [("LM-head loss", "one of the two did not run", NOTHING, NOTHING)]
    plain, ours = results.values()
    share = plain["peak"] / ours["peak"]
    found = f"1/{share:.1f} of plain's memory, {_median_seconds(ours) / _median_seconds(plain):.2f} of its time"
    return [("LM-head loss", found, "memory below 1/8", _reached_or_short(share > 8))]


def _step_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    results, peak = _results_that_ran(outcome), outcome.figures["peak_flops"]
    if JOINT not in results:
        return [("step", "ours did not run", NOTHING, NOTHING)]
    ours, lines = results[JOINT], list[SummaryLine]()
    if peak is not None:
        share = _useful_rate(ours) / peak
        lines.append(("step", f"{share:.1%} MFU on useful FLOPs", "at least 45 %", _reached_or_short(share >= 0.45)))
    for name in (BRIDGE_JOINT, NAIVE):
        if name in results:
            times, memory = _median_seconds(results[name]) / _median_seconds(ours), ours["peak"] / results[name]["peak"]
            found = f"{times:.2f} times as fast, {memory:.2f} of the memory: {name}"
            judged = _reached_or_short(times >= 1.5 and memory <= 0.5) if name == BRIDGE_JOINT else NOTHING
            lines.append(("step", found, "1.5, and 0.5" if name == BRIDGE_JOINT else NOTHING, judged))
    return lines or [("step", f"{1e3 * _median_seconds(ours):.3g} ms", NOTHING, NOTHING)]


def _results_that_ran(outcome: BenchOutcome) -> PartResults:
    return {name: one for name, one in outcome.figures["results"].items() if one["seconds"]}


def _median_seconds(result: dict[str, Any]) -> float:
    return median(result["seconds"])


def _useful_rate(result: dict[str, Any]) -> float:
    return float(result["useful"]) / _median_seconds(result)


def _reached_or_short(reached: bool) -> str:
    return REACHED if reached else SHORT

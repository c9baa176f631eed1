"""All parts in one short table, each line with what it should be: judged on GPUs alone, for which the aims are."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from nld_train.bench.attention import CAUSAL, OURS
from nld_train.bench.outcome import NOTHING, Outcome, table
from nld_train.bench.step import BRIDGE_JOINT, JOINT, NAIVE

HEAD = ["", "found", "wanted", ""]
REACHED, SHORT = "reached", "SHORT"
Line = tuple[str, str, str, str]  # what, found, wanted, verdict
Results = dict[str, Any]  # of a part, by the alternative's name


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table; a part that is missing has no line."""
    makers = {"correctness": correctness, "attention": attention, "LM-head loss": loss, "step": step}
    rows = []
    for outcome in outcomes:
        for what, found, wanted, judged in makers[outcome.part](outcome):
            is_aim = judged in (REACHED, SHORT)
            rows.append([what, found, wanted, "no GPU" if is_aim and "cuda" not in outcome.environment else judged])
    return table(HEAD, rows)


def correctness(outcome: Outcome) -> list[Line]:
    findings = outcome.figures["findings"]
    ran = [one for one in findings if one["draws"]]
    whole, asked = sum(one["verdict"] == "ok" for one in findings), outcome.figures["asked"]
    draws = sum(one["draws"] for one in ran)
    worst = max((one["whole"] for one in ran), default=float("nan"))
    found = f"{whole} of {asked} as asked, {draws} draws, worst {worst:.1e}"
    if outcome.wrong:
        return [("correctness", found, "all, none out of bounds", "WRONG")]
    return [("correctness", found, "all, none out of bounds", "ok" if whole == asked else "cut short")]


def attention(outcome: Outcome) -> list[Line]:
    results = ran(outcome)
    mine = {name: one for name, one in results.items() if name.startswith(OURS)}
    if not mine:
        return [("attention", "none of ours ran", NOTHING, NOTHING)]
    best = max(mine, key=lambda name: rate(mine[name]))
    lines = []
    ceiling = max((rate(one) for name, one in results.items() if name.startswith(CAUSAL)), default=None)
    if ceiling is not None:
        share = rate(mine[best]) / ceiling
        found = f"{rate(mine[best]) / 1e12:.3g} TFLOP/s, {share:.0%} of causal ({best})"
        lines.append(("attention", found, "at least 80 %", verdict(share >= 0.8)))
    flex = f"{OURS}flex"
    if flex in results and best != flex:
        times = middle(results[flex]) / middle(mine[best])
        lines.append(
            ("attention", f"{times:.2f} times as fast as whole-row flex", "at least 1.5", verdict(times >= 1.5))
        )
    return lines


def loss(outcome: Outcome) -> list[Line]:
    results = ran(outcome)
    if len(results) < 2:
        return [("LM-head loss", "one of the two did not run", NOTHING, NOTHING)]
    plain, ours = results.values()
    share = plain["peak"] / ours["peak"]
    found = f"1/{share:.1f} of plain's memory, {middle(ours) / middle(plain):.2f} of its time"
    return [("LM-head loss", found, "memory below 1/8", verdict(share > 8))]


def step(outcome: Outcome) -> list[Line]:
    results, peak = ran(outcome), outcome.figures["peak_flops"]
    if JOINT not in results:
        return [("step", "ours did not run", NOTHING, NOTHING)]
    ours, lines = results[JOINT], list[Line]()
    if peak is not None:
        share = rate(ours) / peak
        lines.append(("step", f"{share:.1%} MFU on useful FLOPs", "at least 45 %", verdict(share >= 0.45)))
    for name in (BRIDGE_JOINT, NAIVE):
        if name in results:
            times, memory = middle(results[name]) / middle(ours), ours["peak"] / results[name]["peak"]
            found = f"{times:.2f} times as fast, {memory:.2f} of the memory: {name}"
            judged = verdict(times >= 1.5 and memory <= 0.5) if name == BRIDGE_JOINT else NOTHING
            lines.append(("step", found, "1.5, and 0.5" if name == BRIDGE_JOINT else NOTHING, judged))
    return lines or [("step", f"{1e3 * middle(ours):.3g} ms", NOTHING, NOTHING)]


def ran(outcome: Outcome) -> Results:
    return {name: one for name, one in outcome.figures["results"].items() if one["seconds"]}


def middle(result: dict[str, Any]) -> float:
    return median(result["seconds"])


def rate(result: dict[str, Any]) -> float:
    return float(result["useful"]) / middle(result)


def verdict(reached: bool) -> str:
    return REACHED if reached else SHORT

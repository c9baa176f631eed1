"""All parts in one table: what was found beside its bound, and what was skipped with the reason.

Wrong results are wrong everywhere; of speed and memory only GPUs are judged, because the aims are for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from nld_train.bench.attention import CAUSAL, OURS
from nld_train.bench.head_loss import CHUNKED, PLAIN
from nld_train.bench.kernel_check import ANY_INPUTS
from nld_train.bench.outcome import NOTHING, OK, WRONG, BenchOutcome, aligned_table
from nld_train.bench.step_bench import AR, BRIDGE_AR, BRIDGE_JOINT, JOINT, MEGATRON_LAYERS, NAIVE

HEAD = ["part", "case", "figure", "bound", "verdict"]
CUT, SKIPPED, FAILED = "cut short", "skipped", "FAILED"
REACHED, SHORT, NO_GPU = "reached", "SHORT", "no GPU"  # verdicts on speed and memory
BAD = (WRONG, FAILED)  # verdicts that make the exit status 1
NEAR_PLAN = 0.1  # how far a step's memory may be from the plan
PartResults = dict[str, Any]  # the figures of one part, by the alternative's name


@dataclass(frozen=True)
class SummaryLine:
    """One thing that was looked at."""

    part: str
    case: str
    figure: str = NOTHING
    bound: str = NOTHING
    verdict: str = NOTHING  # one of the words above; NOTHING: a figure without a bound
    reason: str = ""  # why it was skipped, or is wrong

    def cells(self) -> list[str]:
        """The line in the columns of HEAD."""
        return [self.part, self.case, self.figure, self.bound, ": ".join(filter(None, (self.verdict, self.reason)))]


def summary_table(lines: Sequence[SummaryLine]) -> str:
    """The lines as Markdown."""
    return aligned_table(HEAD, [line.cells() for line in lines])


def summary_lines(outcomes: Sequence[BenchOutcome]) -> list[SummaryLine]:
    """What the outcomes found; a part that is missing has no line."""
    makers = {
        "correctness": _correctness_lines,
        "attention": _attention_lines,
        "LM-head loss": _head_loss_lines,
        "step": _step_lines,
        "training": _training_lines,
    }
    return [line for outcome in outcomes for line in makers[outcome.part](outcome)]


def _correctness_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    """One line for each kernel, over all inputs that it was checked on, and one for each refusal."""
    findings, part, lines = outcome.figures["findings"], outcome.part, list[SummaryLine]()
    checked = [one for one in findings if one["refused"] is None]
    for what in dict.fromkeys(one["what"] for one in checked):
        mine = [one for one in checked if one["what"] == what]
        draws, worst = sum(one["draws"] for one in mine), max(one["whole"] for one in mine)
        figure = f"{draws} draws of {len(mine)} inputs, worst {worst:.1e}"
        failed = next((f"{one['inputs']}: {one['failed']}" for one in mine if one["failed"] is not None), "")
        whole = all(one["draws"] == one["asked"] for one in mine)
        verdict = WRONG if failed else OK if whole else CUT
        lines.append(SummaryLine(part, what, figure, f"{outcome.figures['bound']:g} of float64", verdict, failed))
    for one in findings:
        if one["refused"] is not None:
            case = one["what"] if one["inputs"] == ANY_INPUTS else f"{one['what']}, {one['inputs']}"
            lines.append(SummaryLine(part, case, verdict=SKIPPED, reason=one["refused"]))
    missing = outcome.figures["asked"] - sum(one["asked"] > 0 for one in findings)
    if missing:
        lines.append(SummaryLine(part, f"{missing} more inputs", verdict=SKIPPED, reason="the time was up"))
    return lines


def _attention_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    """The ceiling; each way beside it, of which the fastest of ours is judged; the fastest beside whole-row flex."""
    ran, part = _results_that_ran(outcome), outcome.part
    limits = {name: _useful_rate(one) for name, one in ran.items() if name.startswith(CAUSAL)}
    ceiling = max(limits.values(), default=None)
    best = max((name for name in ran if name.startswith(OURS)), key=lambda name: _useful_rate(ran[name]), default=None)
    lines = []
    for name, one in outcome.figures["results"].items():
        if name not in ran:
            lines.append(_skipped_line(part, name, one))
            continue
        share = None if ceiling is None else _useful_rate(one) / ceiling
        figure = f"{_useful_rate(one) / 1e12:.3g} TFLOP/s" + ("" if share is None else f", {share:.0%} of causal")
        if name == best and share is not None:
            lines.append(_judged(outcome, SummaryLine(part, name, figure, "at least 80 %"), share >= 0.8))
        else:
            lines.append(SummaryLine(part, name, figure))
    flex = f"{OURS}flex"
    if best is not None and flex in ran and best != flex:
        times = _median_seconds(ran[flex]) / _median_seconds(ran[best])
        line = SummaryLine(part, f"{best} beside whole-row flex", f"{times:.2f} times as fast", "at least 1.5")
        lines.append(_judged(outcome, line, times >= 1.5))
    return lines


def _head_loss_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    """Memory and time of each way as parts of plain's; ours is judged by its memory."""
    ran, part, lines = _results_that_ran(outcome), outcome.part, list[SummaryLine]()
    for name, one in outcome.figures["results"].items():
        if name not in ran:
            lines.append(_skipped_line(part, name, one))
        elif PLAIN not in ran or name == PLAIN:
            lines.append(
                SummaryLine(part, name, f"{one['peak'] / 2**20:,.0f} MiB, {1e3 * _median_seconds(one):.3g} ms")
            )
        else:
            share, time = ran[PLAIN]["peak"] / one["peak"], _median_seconds(one) / _median_seconds(ran[PLAIN])
            figure = f"1/{share:.1f} of plain's memory, {time:.2f} of its time"
            line = SummaryLine(part, name, figure, "memory below 1/8" if name == CHUNKED else NOTHING)
            lines.append(_judged(outcome, line, share > 8) if name == CHUNKED else line)
    return lines


def _step_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    """Our step's MFU and its memory beside the plan; both stages beside the steps of others."""
    results, ran, part = outcome.figures["results"], _results_that_ran(outcome), outcome.part
    lines = [_skipped_line(part, name, one) for name, one in results.items() if name not in ran]
    if outcome.figures["kind"] != MEGATRON_LAYERS:
        reason = f"measured is {outcome.figures['kind']}"
        lines += [SummaryLine(part, name, verdict=SKIPPED, reason=reason) for name in (BRIDGE_JOINT, BRIDGE_AR)]
    if JOINT in ran:
        lines += [_utilization_line(outcome, ran[JOINT]), *_memory_lines(outcome, ran[JOINT])]
    for theirs in (BRIDGE_JOINT, NAIVE):
        if JOINT in ran and theirs in ran:
            times = _median_seconds(ran[theirs]) / _median_seconds(ran[JOINT])
            memory = ran[JOINT]["peak"] / ran[theirs]["peak"]
            case, figure = f"{JOINT} beside {theirs}", f"{times:.2f} times as fast, {memory:.2f} of the memory"
            line = SummaryLine(part, case, figure, "1.5, and 0.5" if theirs == BRIDGE_JOINT else NOTHING)
            lines.append(_judged(outcome, line, times >= 1.5 and memory <= 0.5) if theirs == BRIDGE_JOINT else line)
    if AR in ran and BRIDGE_AR in ran:
        cost = _median_seconds(ran[AR]) / _median_seconds(ran[BRIDGE_AR])
        line = SummaryLine(part, f"{AR} beside {BRIDGE_AR}", f"{cost:.2f} of its time", "at most 1.05")
        lines.append(_judged(outcome, line, cost <= 1.05))
    return lines


def _utilization_line(outcome: BenchOutcome, ours: dict[str, Any]) -> SummaryLine:
    peak = outcome.figures["peak_flops"]
    if peak is None:
        return SummaryLine(outcome.part, JOINT, f"{1e3 * _median_seconds(ours):.3g} ms")
    share = _useful_rate(ours) / peak
    line = SummaryLine(outcome.part, JOINT, f"{share:.1%} MFU on useful FLOPs", "at least 45 %")
    return _judged(outcome, line, share >= 0.45)


def _memory_lines(outcome: BenchOutcome, ours: dict[str, Any]) -> list[SummaryLine]:
    """The measured peak beside the plan's, which is one of Megatron's layers and optimizer."""
    case, planned = "memory beside the plan", outcome.figures["planned"]
    if outcome.figures["kind"] != MEGATRON_LAYERS:
        reason = f"the plan is Megatron's, and measured is {outcome.figures['kind']}"
        return [SummaryLine(outcome.part, case, verdict=SKIPPED, reason=reason)]
    share = ours["peak"] / planned
    figure = f"{ours['peak'] / 1e9:.3g} GB, {share:.2f} of the plan's {planned / 1e9:.3g}"
    line = SummaryLine(outcome.part, case, figure, f"within {NEAR_PLAN:.0%}")
    return [_judged(outcome, line, abs(share - 1) <= NEAR_PLAN)]


def _training_lines(outcome: BenchOutcome) -> list[SummaryLine]:
    return [
        SummaryLine(outcome.part, one["case"], one["figure"], one["bound"], one["verdict"])
        for one in outcome.figures["cases"]
    ]


def _judged(outcome: BenchOutcome, line: SummaryLine, reached: bool) -> SummaryLine:
    """The line with its verdict, which on a CPU is none."""
    verdict = (REACHED if reached else SHORT) if "cuda" in outcome.environment else NO_GPU
    return replace(line, verdict=verdict)


def _skipped_line(part: str, name: str, result: dict[str, Any]) -> SummaryLine:
    return SummaryLine(part, name, verdict=SKIPPED, reason=result["refusal"])


def _results_that_ran(outcome: BenchOutcome) -> PartResults:
    return {name: one for name, one in outcome.figures["results"].items() if one["seconds"]}


def _median_seconds(result: dict[str, Any]) -> float:
    return median(result["seconds"])


def _useful_rate(result: dict[str, Any]) -> float:
    return float(result["useful"]) / _median_seconds(result)

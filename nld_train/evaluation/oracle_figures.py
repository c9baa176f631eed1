"""Figures of the speed of light, from the records alone, and their table for a terminal.

acceptance: tokens per step, sum of B / sum of the steps K. tokens_per_forward ("real"): sum of B / sum of (K + 1): a
block also costs its cache refresh. Linear self-speculation pays two forwards per cycle: accepted length / 2. No figure
counts the prefill.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nld_train.evaluation.record_file import Record

ALL = "all categories"


def oracle_figures(identity: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """What was measured, and for every block length the figures of all contexts and of every category."""
    blocks = [_length_figures(identity, records, length) for length in identity["blocks"]]
    return {"kind": "sol", "identity": dict(identity), "blocks": blocks}


def _length_figures(identity: Mapping[str, Any], records: Sequence[Record], length: int) -> dict[str, Any]:
    own = sorted((record for record in records if record["block"] == length), key=lambda record: record["key"])
    categories = sorted({record["category"] for record in own})
    return {
        "block": length,
        "contexts": len(own),
        "ended": sorted(record["context"] for record in own if record["ended"]),
        "overall": _figures_of(identity, own, length),
        "categories": {
            category: _figures_of(identity, [record for record in own if record["category"] == category], length)
            for category in categories
        },
    }


def _figures_of(identity: Mapping[str, Any], records: Sequence[Record], length: int) -> dict[str, Any]:
    blocks = [block for record in records for block in record["blocks"]]
    gains = [gain for record in records for gain in record["linear"]]
    found: dict[str, Any] = {"block_count": len(blocks)}
    found["greedy"] = _sampler_figures([block["greedy"] for block in blocks], length)
    compaction = [[block["compaction"], 1] for block in blocks if "compaction" in block]
    if identity["depth"]:
        found["compaction"] = _sampler_figures(compaction, length) | {
            "states_per_block": _ratio(sum(block["states"] for block in blocks), len(blocks)),
            "stopped_by_budget": sum(block["stopped"] for block in blocks),
        }
    found["samplers"] = {
        str(threshold): _sampler_figures([block["samplers"][number] for block in blocks], length)
        for number, threshold in enumerate(identity["thresholds"])
    }
    light = _sampler_figures([[fewest_steps(block, length), 1] for block in blocks], length)
    accepted = _ratio(sum(gains), len(gains))
    linear = {"accepted": accepted, "tokens_per_forward": None if accepted is None else accepted / 2}
    found |= {"speed_of_light": light, "linear": linear}
    found["gap_percent"] = _gap(light["tokens_per_forward"], linear["tokens_per_forward"])
    return found


def fewest_steps(block: Mapping[str, Any], length: int) -> int:
    """The speed of light of a block: the fewest steps of all ways that end in the target; serial denoising's B steps
    are one of them."""
    ways = [steps for steps, ends in (block["greedy"], *block["samplers"]) if ends]
    return min([length, *ways, *([block["compaction"]] if "compaction" in block else [])])


def _sampler_figures(ways: Sequence[Sequence[int]], length: int) -> dict[str, Any]:
    """Figures of ways, each [steps, whether it ends in the target], through blocks of one length."""
    steps, tokens = sum(count for count, _ in ways), length * len(ways)
    return {
        "acceptance": _ratio(tokens, steps),
        "tokens_per_forward": _ratio(tokens, steps + len(ways)),
        "ends_in_target": _ratio(sum(ends for _, ends in ways), len(ways)),
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _gap(light: float | None, linear: float | None) -> float | None:
    """By how many percent more tokens the speed of light gives in a forward."""
    return None if light is None or linear is None else 100 * (light / linear - 1)


def oracle_table(figures: Mapping[str, Any]) -> str:
    """The figures as lines for a terminal."""
    lines = [
        "tokens per step; 'real': per forward, with a cache refresh per block, and two forwards per cycle of linear",
        f"{'block':>5}  {'category':<20}{'blocks':>7}{'greedy':>8}{'compact.':>10}{'light':>7}{'real':>7}"
        f"{'linear':>8}{'real':>7}{'gap':>9}",
    ]
    for found in figures["blocks"]:
        groups = found["categories"] if len(found["categories"]) > 1 else {}
        for name, own in {**groups, ALL: found["overall"]}.items():
            lines.append(_table_row(found["block"], name, own))
    lines += ["", "real samplers: tokens per step, and the share of blocks where they end in the target"]
    for found in figures["blocks"]:
        ways = {"greedy": found["overall"]["greedy"]} | found["overall"]["samplers"]
        shown = [f"{name} {_text(way['acceptance'])} ({_percent(way['ends_in_target'])})" for name, way in ways.items()]
        lines.append(f"{found['block']:>5}  " + ",  ".join(shown))
    for found in figures["blocks"]:
        if found["ended"]:
            count, total = len(found["ended"]), found["contexts"]
            lines.append(f"block {found['block']}: the text of {count} of {total} contexts ends before its last block")
    return "\n".join(lines)


def _table_row(length: int, name: str, own: Mapping[str, Any]) -> str:
    compaction = _text(own["compaction"]["acceptance"]) if "compaction" in own else "-"
    light, linear, gap = own["speed_of_light"], own["linear"], own["gap_percent"]
    return (
        f"{length:>5}  {name:<20.20}{own['block_count']:>7}{_text(own['greedy']['acceptance']):>8}{compaction:>10}"
        f"{_text(light['acceptance']):>7}{_text(light['tokens_per_forward']):>7}{_text(linear['accepted']):>8}"
        f"{_text(linear['tokens_per_forward']):>7}{'-' if gap is None else f'{gap:+.1f} %':>9}"
    )


def _text(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"

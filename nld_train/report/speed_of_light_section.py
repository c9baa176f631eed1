"""What `nld eval sol` found, as part of the evaluation page: how far decoding is from an oracle, by block length."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nld_train.report.chart import ChartLine, ChartPoint, chart_svg
from nld_train.report.columns import number_text
from nld_train.report.decoding_section import LARGE, Figures, html_rows, wide_chart

NOTE = (
    "The oracle knows the target, the text that denoising one token a step makes of a block. Greedy acceptance commits "
    "all that is right, and need not end in the target; compaction always does; the speed of light is the fewest steps "
    "of these and of the thresholds, where they end in the target. Steps: tokens per step. Real: tokens per forward, "
    "with a cache refresh per block; linear self-speculation, behind the same prompts, pays two forwards per cycle. "
    "No figure counts the prefill."
)
HEADER = (
    "block", "category", "blocks", "greedy: steps", "ends in target", "compaction: steps", "speed of light: steps",
    "real", "linear: accepted", "real", "gap",
)  # fmt: skip


def speed_of_light_section(name: str, figures: Figures) -> str:
    """The HTML of one checkpoint's speed of light. name: of the checkpoint."""
    rows = [row for found in figures["blocks"] for row in _rows(found)]
    samplers = [_sampler_row(found) for found in figures["blocks"]]
    header = ["tokens per step (ends in the target)", *figures["blocks"][0]["overall"]["samplers"]]
    return (
        f"<h2>Speed of light: {escape(name)}</h2><ul>{_sentences(figures['blocks'])}</ul>"
        f"{_chart(figures['blocks'])}{html_rows(HEADER, rows)}<h3>Thresholds on the same blocks</h3>"
        f'{html_rows(header, samplers)}<p class="note">{escape(NOTE)}</p>'
    )


def _sentences(blocks: Sequence[Figures]) -> str:
    """The gap in one line for every block length, and what was left out."""
    said = []
    for found in blocks:
        own, left_out = found["overall"], len(found["ended"])
        light, linear = (own[way]["tokens_per_forward"] for way in ("speed_of_light", "linear"))
        if own["gap_percent"] is not None:
            said.append(
                f"Block {found['block']}: <b>{light:.2f}</b> tokens per forward at the speed of light, {linear:.2f} by "
                f"linear self-speculation: {own['gap_percent']:+.1f} %."
            )
        if left_out:
            said.append(f"Block {found['block']}: {left_out} of {found['contexts']} texts end before their last block.")
    return "".join(f"<li>{sentence}</li>" for sentence in said)


def _chart(blocks: Sequence[Figures]) -> str:
    """Real tokens per forward against the block length."""
    ways = {"speed of light": ("speed_of_light", "diffusion"), "linear": ("linear", "speculation")}
    lines = []
    for name, (key, style) in ways.items():
        values = {found["block"]: found["overall"][key]["tokens_per_forward"] for found in blocks}
        spots = [
            ChartPoint(length, value, f"{name}, block {length}: {value:.2f}")
            for length, value in values.items()
            if value is not None
        ]
        lines += [ChartLine(name, style, spots, marked=True)] if spots else []
    longest = 1.1 * max(found["block"] for found in blocks)
    title = "Real tokens per forward against the block length"
    return (
        chart_svg(wide_chart(title, "tokens per forward", lines, (longest, "tokens of a block"), LARGE))
        if lines
        else ""
    )


def _rows(found: Figures) -> list[list[str]]:
    groups: Mapping[str, Any] = found["categories"] if len(found["categories"]) > 1 else {}
    return [_cells(found["block"], name, own) for name, own in {**groups, "all": found["overall"]}.items()]


def _cells(length: int, name: str, own: Figures) -> list[str]:
    greedy, light, linear = own["greedy"], own["speed_of_light"], own["linear"]
    return [
        str(length),
        name,
        str(own["block_count"]),
        number_text(greedy["acceptance"], ".2f"),
        number_text(greedy["ends_in_target"], ".0%"),
        number_text(own["compaction"]["acceptance"], ".2f") if "compaction" in own else "-",
        number_text(light["acceptance"], ".2f"),
        number_text(light["tokens_per_forward"], ".2f"),
        number_text(linear["accepted"], ".2f"),
        number_text(linear["tokens_per_forward"], ".2f"),
        "-" if own["gap_percent"] is None else f"{own['gap_percent']:+.1f} %",
    ]


def _sampler_row(found: Figures) -> list[str]:
    cells = [f"block {found['block']}"]
    for way in found["overall"]["samplers"].values():
        cells.append(f"{number_text(way['acceptance'], '.2f')} ({number_text(way['ends_in_target'], '.0%')})")
    return cells

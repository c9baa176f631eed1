"""Several checkpoints in one table: a line for each folder of evaluations, with what decides between them."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from nld_train.report.columns import number_text
from nld_train.report.decoding_section import html_rows

HEADER = (
    "", "AR bits/byte", "diffusion bits/byte", "accepted length", "tokens/forward, exact", "tokens/forward, diffusion",
    "agreement", "speed of light",
)  # fmt: skip
NOTE = (
    "Exact: the fastest of the modes whose answers are greedy AR's, and its accepted length. Diffusion: the point with "
    "the most tokens per forward, and its agreement with greedy AR. Speed of light: real tokens per forward, the best "
    "of the block lengths. Compare only what was measured on the same prompts and data."
)


def comparison_table(found: Mapping[Path, Mapping[str, Mapping[str, Any]]]) -> str:
    """The HTML of the table. found: folder -> kind -> what `nld eval` wrote."""
    rows = [_line(folder, kinds) for folder, kinds in found.items()]
    return f'<h2>Side by side</h2>{html_rows(HEADER, rows)}<p class="note">{escape(NOTE)}</p>'


def _line(folder: Path, kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    likelihood = kinds.get("likelihood")
    bits = [None, None] if likelihood is None else [likelihood[name]["bits_per_byte"] for name in ("ar", "diffusion")]
    exact, denoised = _fastest(kinds, lossless=True), _fastest(kinds, lossless=False)
    light = [
        block["overall"]["speed_of_light"]["tokens_per_forward"] for block in kinds.get("sol", {"blocks": []})["blocks"]
    ]
    reached = [value for value in light if value is not None]
    return [
        str(folder),
        *(number_text(value, ".3f") for value in bits),
        number_text(exact["accepted_length"], ".3f"),
        number_text(exact["tokens_per_forward"], ".3f"),
        number_text(denoised["tokens_per_forward"], ".3f"),
        number_text(denoised["agreement"], ".1%"),
        number_text(max(reached, default=None), ".3f"),
    ]


def _fastest(kinds: Mapping[str, Mapping[str, Any]], lossless: bool) -> Mapping[str, Any]:
    """The figures of the fastest point among those whose answers must be AR's, or of diffusion; nothing where there is
    none."""
    points = kinds["decode"]["points"] if "decode" in kinds else []
    kept = [point["overall"] for point in points if point["lossless"] == lossless and point["mode"] != "ar"]
    nothing = {"accepted_length": None, "tokens_per_forward": None, "agreement": None}
    return max(kept, key=lambda point: point["tokens_per_forward"], default=nothing)

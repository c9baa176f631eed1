"""The picture of visibility, drawn from the predicate that makes every mask: SVG for pages, text for the terminal."""

from itertools import groupby

import torch
from torch import Tensor

from nld_train.config import require
from nld_train.dual_stream.row_layout import PositionInfo, RowLayout, locate_row
from nld_train.dual_stream.visibility import visible_table

CELL, FILL = 14, 13  # pixels from one cell to the next, and width of a cell's colour
LEFT, TOP, BOTTOM, RIGHT = 120, 96, 100, 24  # pixels around the table: row labels, column labels, legend, air
LABEL = 56  # pixels that the name of a block takes
MARGIN, NARROWEST = 16, 340  # pixels; a narrower picture would cut the title off
MOST = 256  # input positions: a larger picture cannot be read
KINDS = {"nn": "noisy sees noisy", "nc": "noisy sees clean", "cc": "clean sees clean"}
LETTERS = {"nn": "#", "nc": "o", "cc": "+"}
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 14px }
  .page { fill: #ffffff } .table { fill: #f0f2f4 }
  .nn { fill: #d9730d } .nc { fill: #2f6fd0 } .cc { fill: #2a8f60 }
  .block { stroke: #a5adb6; stroke-width: 1 } .half { stroke: #1f2328; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .table { fill: #1c2229 }
    .nn { fill: #f0953f } .nc { fill: #5c9bf5 } .cc { fill: #46b583 }
    .block { stroke: #57606a } .half { stroke: #e6edf3 }
  }
"""

Span = tuple[int, int, str]  # first position, position after the last, label


def visibility_svg(layout: RowLayout, documents: Tensor | None = None) -> str:
    """The dense table [S, S] as an SVG that needs no other file and follows the reader's light or dark mode.

    Each row of cells is a query, each column a key. `documents`: [L] int64 of one row, or None.
    """
    table, info = _row(layout, documents)
    side = layout.size * CELL
    width, height = max(NARROWEST, LEFT + side + RIGHT), TOP + side + BOTTOM
    what = f"Visibility: {layout.length} tokens, block size {layout.block_size}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{what}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
        f'<text class="title" x="{MARGIN}" y="26">{what}</text>',
        f'<text x="{MARGIN}" y="46">Row: who looks. Column: who is seen.</text>',
        f'<rect class="table" x="{LEFT}" y="{TOP}" width="{side}" height="{side}"/>',
        *_cells(table, info),
        *_labels(_blocks(info), side, "block", 8, 12),
        *_labels(_halves(layout), side, "half", 28, 68),
        f'<rect class="half" x="{LEFT}" y="{TOP}" width="{side}" height="{side}" fill="none"/>',
        *_legend({kind for row in _kinds(table, info) for kind in row if kind}, TOP + side + 28),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def visibility_text(layout: RowLayout, documents: Tensor | None = None) -> str:
    """The dense table [S, S] for the terminal: a letter a pair, a bar between the halves, a space between blocks.

    `documents`: [L] int64 of one row, or None.
    """
    table, info = _row(layout, documents)
    kinds = _kinds(table, info)
    starts = {first for first, _, _ in _blocks(info)} - {0}
    seam = layout.clean_start
    lines = [f"{layout.length} tokens, block size {layout.block_size}; row: who looks, column: who is seen"]
    for query, row in enumerate(kinds):
        if query in starts:
            lines.append("-" * len(lines[-1]) if query == seam else "")
        half, token = ("noisy", query) if query < seam else ("clean", query - seam)
        cells = [_gap(key, starts, seam) + (LETTERS[kind] if kind else ".") for key, kind in enumerate(row)]
        lines.append(f"{half} {token:>4}  " + "".join(cells))
    present = {kind for row in kinds for kind in row}
    legend = [f"{LETTERS[kind]} {text}" for kind, text in KINDS.items() if kind in present]
    return "\n".join([*lines, "", ", ".join([*legend, ". not seen"])]) + "\n"


def _gap(key: int, starts: set[int], seam: int) -> str:
    if key not in starts:
        return ""
    return " | " if key == seam else " "


def _row(layout: RowLayout, documents: Tensor | None) -> tuple[Tensor, PositionInfo]:
    """The table [S, S] and the info [S] of one row's positions. Raises: UserError for a row too long to draw."""
    require(layout.size <= MOST, f"a picture of {layout.size} positions", f"up to {MOST}", "lower the length")
    if documents is None:
        return visible_table(layout), locate_row(layout)
    return visible_table(layout, documents[None])[0], locate_row(layout, documents[None]).at(torch.tensor(0))


def _kinds(table: Tensor, info: PositionInfo) -> list[list[str]]:
    """The kind of every pair, [S][S]; "" where the query does not see the key."""
    halves = ["n" if noisy else "c" for noisy in info.noisy.tolist()]
    return [
        [halves[query] + halves[key] if seen else "" for key, seen in enumerate(row)]
        for query, row in enumerate(table.tolist())
    ]


def _blocks(info: PositionInfo) -> list[Span]:
    """The blocks of both halves, in input order."""
    spans: list[Span] = []
    for (_, block), members in groupby(zip(info.noisy.tolist(), info.block.tolist(), strict=True)):
        first = spans[-1][1] if spans else 0
        spans.append((first, first + len(list(members)), f"block {block}"))
    return spans


def _halves(layout: RowLayout) -> list[Span]:
    clean = (layout.clean_start, layout.size, "clean")
    return [(0, layout.clean_start, "noisy"), clean] if layout.dual else [clean]


def _cells(table: Tensor, info: PositionInfo) -> list[str]:
    return [
        f'<rect class="{kind}" x="{LEFT + key * CELL}" y="{TOP + query * CELL}" width="{FILL}" height="{FILL}"/>'
        for query, row in enumerate(_kinds(table, info))
        for key, kind in enumerate(row)
        if kind
    ]


def _labels(spans: list[Span], side: int, name: str, above: int, before: int) -> list[str]:
    """A line where each span starts, and its label `above` the columns and `before` the rows (pixels)."""
    parts: list[str] = []
    for first, last, label in spans:
        start, middle, span = first * CELL, (first + last) * CELL / 2, (last - first) * CELL
        column = label if span >= LABEL or name == "half" else label.removeprefix("block ")
        parts += [
            f'<path class="{name}" d="M{LEFT + start} {TOP}v{side} M{LEFT} {TOP + start}h{side}"/>',
            f'<text x="{LEFT + middle}" y="{TOP - above}" text-anchor="middle">{column}</text>',
            f'<text x="{LEFT - before}" y="{TOP + middle + 4}" text-anchor="end">{label}</text>',
        ]
    return parts


def _legend(present: set[str], top: int) -> list[str]:
    parts: list[str] = []
    for place, kind in enumerate(kind for kind in KINDS if kind in present):
        y = top + 22 * place
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y - 10}" width="12" height="12"/>')
        parts.append(f'<text x="{LEFT + 20}" y="{y}">{KINDS[kind]}</text>')
    return parts

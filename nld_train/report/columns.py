"""Tables for a terminal, and the numbers in them."""

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of texts, the header among them, as lines: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[*map(str.ljust, row[:left], widths[:left]), *map(str.rjust, row[left:], widths[left:])] for row in rows]
    return "\n".join(map("  ".join, lines))


def number_text(value: float | None, form: str) -> str:
    """A number in a format; a dash where there is none."""
    return "-" if value is None else format(value, form)

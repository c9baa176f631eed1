"""The table of a report: one row per stage, as text for the terminal and as HTML for the page."""

from collections.abc import Sequence
from html import escape

from nld_train.report.columns import align_columns
from nld_train.report.history import Stage, stage_losses

NATS = "nats per token"
NONE = "-"
NOTE = (
    "Losses on the validation rows, at the first and the last evaluation. Unigram entropy: the loss of a model that "
    "knows only how often each token occurs. Gain: unigram entropy less AR loss at the end. Drop: diffusion loss at "
    "the start less that at the end. The losses of SFT are those of answers alone. Tokens: rows x row length, each "
    "counted once. Tokens/s: median of the logged intervals, evaluations left out."
)
HEADER = (
    "stage",
    "steps",
    "tokens",
    "AR start",
    "AR end",
    "unigram entropy",
    "gain",
    "diffusion start",
    "diffusion end",
    "drop",
    "tokens/s",
)


def stage_cells(stage: Stage, unigram_entropy: float | None) -> list[str]:
    """One row of the table, in the order of HEADER."""
    found = stage_losses(stage)
    rate, level = stage.tokens_per_second, None if stage.on_answers else unigram_entropy
    return [
        stage.run.name,
        f"{stage.steps:,}",
        f"{stage.tokens:,}",
        decimals_text(found.ar_start),
        decimals_text(found.ar_end),
        decimals_text(level),
        decimals_text(found.gain(level)),
        decimals_text(found.diffusion_start),
        decimals_text(found.diffusion_end),
        decimals_text(found.diffusion_drop),
        NONE if rate is None else f"{rate:,.0f}",
    ]


def decimals_text(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def text_table(stages: Sequence[Stage], unigram_entropy: float | None) -> str:
    """The table for the terminal: losses on the validation rows, in nats per token."""
    rows = [list(HEADER), *[stage_cells(stage, unigram_entropy) for stage in stages]]
    return align_columns(rows)


def html_table(stages: Sequence[Stage], unigram_entropy: float | None) -> str:
    groups = "".join(
        f'<th colspan="{width}"{kind}>{name}</th>'
        for width, kind, name in (
            (3, "", ""),
            (4, ' class="group"', f"AR loss, {NATS}"),
            (3, ' class="group"', f"diffusion loss, {NATS}"),
            (1, "", ""),
        )
    )
    names = "".join(f"<th>{name.removeprefix('AR ').removeprefix('diffusion ')}</th>" for name in HEADER)
    rows = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in stage_cells(stage, unigram_entropy)) + "</tr>"
        for stage in stages
    ]
    table = f"<table><thead><tr>{groups}</tr><tr>{names}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div><p class="note">{NOTE}</p>'

"""What `nld eval likelihood` and `nld eval tasks` found, as parts of the evaluation page."""

from collections.abc import Mapping
from html import escape
from typing import Any

from nld_train.report.columns import number_text
from nld_train.report.decoding_section import html_rows

LIKELIHOOD_NOTE = (
    "Of the same tokens: AR's negative log-likelihood, and the diffusion bound, above which the model's own likelihood "
    "by denoising lies. Windows are the independent units of the standard error; that of the noise is of the draws "
    "alone. Control tokens are predicted, and have no bytes."
)
TASKS_NOTE = (
    "Likelihood tasks are AR's in every mode. Tokens per forward: generated tokens / all forwards, the prefill among "
    "them."
)
HEADER = ("", "nats per token", "standard error", "of the noise", "bits per byte", "standard error", "of the noise")
TASK_HEADER = ("task", "mode", "figure", "value", "standard error", "tokens/forward")


def likelihood_section(name: str, figures: Mapping[str, Any]) -> str:
    """The HTML of one checkpoint's likelihoods. name: of the checkpoint."""
    counted = (
        f"{figures['windows']:,} windows of up to {figures['identity']['length']:,} tokens: {figures['tokens']:,} "
        f"tokens that count, {figures['bytes']:,} bytes; {figures['diffusion']['draws']} draws of noise a window"
    )
    rows = []
    for title, measure in (("AR", figures["ar"]), ("diffusion, at most", figures["diffusion"])):
        cells = [title]
        for unit in ("nats_per_token", "bits_per_byte"):
            noise = measure["noise_standard_error"][unit] if "noise_standard_error" in measure else None
            cells += [number_text(value, ".4f") for value in (measure[unit], measure["standard_error"][unit], noise)]
        rows.append(cells)
    return (
        f"<h2>Likelihood: {escape(name)}</h2><p>{counted}</p>{html_rows(HEADER, rows)}"
        f'<p class="note">{escape(LIKELIHOOD_NOTE)}</p>'
    )


def tasks_section(name: str, figures: Mapping[str, Any]) -> str:
    """The HTML of one checkpoint's tasks. name: of the checkpoint."""
    rows = [
        [
            *(score["task"], score["mode"], score["figure"]),
            *(number_text(score[key], ".4f") for key in ("value", "standard_error", "tokens_per_forward")),
        ]
        for score in figures["scores"]
    ]
    return f'<h2>Tasks: {escape(name)}</h2>{html_rows(TASK_HEADER, rows)}<p class="note">{escape(TASKS_NOTE)}</p>'

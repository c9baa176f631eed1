"""One prompt decoded in every mode, side by side: what `nld generate --json` wrote, as part of the report."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from nld_train.config import require
from nld_train.fields import field_types
from nld_train.json_file import has_json_type, read_json_object

STYLE = """
  .modes { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 16px }
  .mode { border: 1px solid var(--grid); border-radius: 6px; padding: 10px 14px; min-width: 0 }
  .mode h3 { font-size: 15px; margin: 0 0 2px } .mode pre { margin: 8px 0 0; line-height: 1.7 }
  .given { color: var(--muted) } .token { border-radius: 2px; box-decoration-break: clone }
"""
HUE = "209 133 35"  # of the token committed last; the first is without colour


@dataclass(frozen=True)
class DecodedAnswer:
    """One mode's answer, as written by `nld generate --json`."""

    mode: str
    pieces: list[str]  # text of every generated token
    order: list[int]  # the forward that gave each of them
    forwards: int
    detail: str  # what the forwards were, in words
    tokens_per_forward: float
    tokens_per_second: float
    accepted_lengths: list[int]


def read_answers(path: Path) -> tuple[str, list[DecodedAnswer]]:
    """The prompt and its answers. Raises: UserError where the file is missing or of another kind."""
    require(path.is_file(), f"no file {path}", "what `nld generate --json` wrote", "run it first")
    content = read_json_object(path, "what `nld generate --json` wrote")
    prompt, answers = content.get("prompt"), content.get("answers")
    good = isinstance(prompt, str) and isinstance(answers, list) and all(map(is_answer, answers))
    require(good, f"{path} holds no answers", "what `nld generate --json` wrote", "write it again")
    return content["prompt"], [DecodedAnswer(**answer) for answer in content["answers"]]


def is_answer(content: object) -> bool:
    """Whether JSON content is an answer: all of its fields, each of its type, and an order of every piece."""
    kinds = field_types(DecodedAnswer)
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        return False
    if not all(has_json_type(kind, content[name]) for name, kind in kinds.items()):
        return False
    counts = [content["forwards"], content["tokens_per_forward"], content["tokens_per_second"]]
    whole = len(content["pieces"]) == len(content["order"])
    return whole and min(*counts, *content["order"], *content["accepted_lengths"], 0) == 0


def decoded_section(path: Path) -> str:
    """The HTML of this part. Raises: UserError."""
    prompt, answers = read_answers(path)
    panels = "".join(answer_panel(prompt, answer) for answer in answers)
    sentence = (
        "One prompt in every mode, from the same weights. Colour is the order of commitment: the darker a token, the "
        "later the forward pass that gave it; tokens of one shade came together. Rest the pointer on a token to read "
        "its forward. Forwards include the prefill."
    )
    return f'<h2>Decoded in every mode</h2><p>{sentence}</p><div class="modes">{panels}</div>'


def answer_panel(prompt: str, answer: DecodedAnswer) -> str:
    last = max(answer.order, default=1)
    tokens = "".join(token_html(piece, step, last) for piece, step in zip(answer.pieces, answer.order, strict=True))
    figures = (
        f"{len(answer.pieces)} tokens in {answer.forwards} forwards ({answer.detail}): "
        f"{answer.tokens_per_forward:.2f} tokens per forward, {answer.tokens_per_second:.0f} tokens/s"
    )
    if answer.accepted_lengths:
        mean = sum(answer.accepted_lengths) / len(answer.accepted_lengths)
        figures += f"; {mean:.2f} tokens per verification"
    return (
        f'<div class="mode"><h3>{escape(answer.mode)}</h3><div class="note">{escape(figures)}</div>'
        f'<pre><span class="given">{escape(prompt)}</span>{tokens}</pre></div>'
    )


def token_html(piece: str, step: int, last: int) -> str:
    """A token's text on the shade of its forward."""
    shade = f"background: rgb({HUE} / {0.06 + 0.64 * step / last:.2f})"
    return f'<span class="token" style="{shade}" title="forward {step}">{escape(piece)}</span>'

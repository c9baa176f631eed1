"""One prompt decoded in every mode, side by side: what `nld generate --json` wrote, as part of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nld_train.config import require
from nld_train.fields import field_types
from nld_train.json_file import has_json_type, read_json_object
from nld_train.report import race

STYLE = """
  .modes { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 16px }
  .mode { border: 1px solid var(--grid); border-radius: 6px; padding: 10px 14px; min-width: 0 }
  .mode h3 { font-size: 15px; margin: 0 0 2px } .mode pre { margin: 8px 0 0; line-height: 1.7 }
  .given { color: var(--muted) } .token { border-radius: 2px; box-decoration-break: clone }
"""
SENTENCE = (
    "One prompt in every mode, from the same weights. Play: every frame is one forward pass of each mode, the prefill "
    "among them, and the mode that needs the fewest is done first. Colour is the order of commitment: the darker a "
    "token, the later the forward that gave it; tokens of one shade came together. Rest the pointer on a token to read "
    "its forward."
)
MEANING = (
    "Tokens per forward are generated tokens divided by all forwards: AR has 1, and as long as a forward over a few "
    "tokens takes the time of one over one, which holds for large models on GPUs at small batches and not on a CPU, "
    "it is the speed-up. Linear self-speculation pays two forwards a cycle, a draft and its verification, and its text "
    "is greedy AR's. The paper's 8B model, on general prompts: 6.82 tokens a cycle, 3.41 tokens per forward; 5.46 "
    "tokens a cycle without the LoRA that drafts. A small model of regular text drafts easily, so its figure says that "
    "the method works, not what a large model will reach."
)
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
    """The prompt, with a line end behind a turn of a chat, and its answers.

    Raises: UserError where the file is missing or of another kind.
    """
    require(path.is_file(), f"no file {path}", "what `nld generate --json` wrote", "run it first")
    content = read_json_object(path, "what `nld generate --json` wrote")
    prompt, answers = content.get("prompt"), content.get("answers")
    good = isinstance(prompt, str) and isinstance(answers, list) and all(map(is_answer, answers))
    require(good, f"{path} holds no answers", "what `nld generate --json` wrote", "write it again")
    # Between a turn and its answer stand marks of the chat template, which are not shown.
    given = content["prompt"] + ("\n" if content.get("chat") is True else "")
    return given, [DecodedAnswer(**answer) for answer in content["answers"]]


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


def decoded_section(paths: Sequence[Path]) -> str:
    """The HTML of this part: a race for every file. Raises: UserError."""
    races = "".join(answers_race(*read_answers(path)) for path in paths)
    return f'<h2>Decoded in every mode</h2><p>{SENTENCE}</p>{races}<p class="note">{MEANING}</p>{race.SCRIPT}'


def answers_race(prompt: str, answers: Sequence[DecodedAnswer]) -> str:
    return race.race_html(
        [answer_panel(prompt, answer) for answer in answers], max((answer.forwards for answer in answers), default=0)
    )


def answer_panel(prompt: str, answer: DecodedAnswer) -> str:
    last = max(answer.order, default=1)
    given = f'<span class="given">{escape(prompt)}</span>'
    tokens = "".join(
        race.race_token(piece, step, shade_css(step, last))
        for piece, step in zip(answer.pieces, answer.order, strict=True)
    )
    figures = (
        f"{len(answer.pieces)} tokens in {answer.forwards} forwards ({answer.detail}): "
        f"{answer.tokens_per_forward:.2f} tokens per forward, {answer.tokens_per_second:.0f} tokens/s"
    )
    if answer.accepted_lengths:
        mean = sum(answer.accepted_lengths) / len(answer.accepted_lengths)
        figures += f"; {mean:.2f} tokens per verification"
    return race.panel_html(answer.mode, answer.forwards, figures, given + tokens)


def shade_css(step: int, last: int) -> str:
    """The shade of a forward."""
    return f"background: rgb({HUE} / {0.06 + 0.64 * step / last:.2f})"

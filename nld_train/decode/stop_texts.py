"""Texts that end an answer: they are looked for in the text of the tokens, for no token need end where a text does."""

from collections.abc import Callable, Sequence

MARGIN = 4  # tokens: at the start of a piece of text a tokenizer may write a token differently


def ends_with_stop(to_text: Callable[[list[int]], str], stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """The function that says of a row's generated tokens whether a stop text is complete in them.

    It looks at the newest tokens alone: each is at least one byte of text, or none, as control tokens are.
    """
    window = max(len(stop.encode()) for stop in stops) + MARGIN

    def complete(tokens: list[int]) -> bool:
        text = to_text(tokens[-window:])
        return any(stop in text for stop in stops)

    return complete


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop text in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def without_beginning_of_stop(text: str, stops: Sequence[str]) -> str:
    """The text without what stands at its end and may become a stop text."""
    longest = max(map(len, stops), default=1) - 1
    waiting = (count for count in range(min(longest, len(text)), 0, -1) if _begins_stop(text[-count:], stops))
    return text[: len(text) - next(waiting, 0)]


def _begins_stop(end: str, stops: Sequence[str]) -> bool:
    return any(stop.startswith(end) for stop in stops)

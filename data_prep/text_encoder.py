"""From texts to tokens: the tokenizers library, or a faster engine that is shown to give the same ids.

An engine is used only where it passes a check on adversarial text when it is loaded, and samples of what it encodes are
compared all along. It is given a copy of tokenizer.json without control tokens: with them, it would turn a "</s>" that
a text spells into the control id.
"""

import importlib
import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nld_train.data.tokenizer import FILE, PIECE_CHARACTERS, TextTokenizer, split_text
from nld_train.errors import UserError

logger = logging.getLogger(__name__)
PLAIN, AUTO = "plain", "auto"
ENGINES = ("snaptokens", "fastokens")  # in the order in which AUTO tries them; both have the same interface
WORTH_BYTES = 1 << 25  # of input: for less, AUTO does not load an engine, which takes seconds
SAMPLE_CHARACTERS = 1000  # compared of about a million: a few hundredths of an engine's time
CHECK_TEXTS = 1500  # drawn at random for the check
SEED = 20_261_127

Ids = NDArray[np.integer]


class TextEncoder(Protocol):
    """What turns texts into tokens."""

    tokenizer: TextTokenizer

    def encode_texts(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """The ids of all texts, end to end [n], and how many each text has [texts]: those of TextTokenizer.encode."""


class EngineTokenizer(Protocol):
    """The interface that the engines share."""

    def encode_batch_flat(self, inputs: list[str]) -> tuple[bytes, bytes]:
        """uint32 ids of all texts, end to end, and uint64 places [texts + 1] where each begins and the last ends."""


class PlainEncoder:
    """The tokenizers library."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode_texts(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """See TextEncoder."""
        # One by one: a batch would take a thread for every core, and the processes are the parallelism.
        rows = [self.tokenizer.encode(text) for text in texts]
        return np.concatenate(rows), np.array([row.size for row in rows], dtype=np.int64)


@dataclass
class EngineEncoder:
    """An engine that has passed `compare_engine`, and goes on being compared."""

    tokenizer: TextTokenizer
    name: str
    engine: EngineTokenizer
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))

    def encode_texts(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """See TextEncoder. Raises UserError where a sample is encoded otherwise than by the tokenizers library."""
        if any(len(text) > PIECE_CHARACTERS for text in texts):
            pieces = [split_text(text, PIECE_CHARACTERS) for text in texts]
            ids, counts = self._encode([piece for parts in pieces for piece in parts])
            starts = np.cumsum([0, *(len(parts) for parts in pieces[:-1])])
            counts = np.add.reduceat(counts, starts)
        else:
            ids, counts = self._encode(list(texts))
        self._compare_sample(self.draw.choice(texts))
        return ids, counts

    def _encode(self, texts: list[str]) -> tuple[Ids, Ids]:
        ids, places = self.engine.encode_batch_flat(texts)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(places, "<u8").astype(np.int64))

    def _compare_sample(self, text: str) -> None:
        start = self.draw.randrange(max(1, len(text) - SAMPLE_CHARACTERS))
        wrong = first_difference(self.tokenizer, self.engine, [text[start : start + SAMPLE_CHARACTERS]])
        if wrong is not None:
            raise UserError(
                f"{self.name} encodes {wrong[:60]!r} otherwise than the tokenizers library",
                "the same ids",
                f"prepare all of it again with --engine {PLAIN}, and report the text",
            )


def choose_engine(tokenizer: TextTokenizer, wanted: str, input_bytes: int) -> str:
    """The name of what encodes: PLAIN, or an engine and its version. Says in one line why no engine is used.

    wanted: PLAIN, AUTO, or the name of an engine. Raises UserError where that engine cannot be used.
    """
    if wanted == PLAIN or (wanted == AUTO and input_bytes < WORTH_BYTES):
        return PLAIN
    names = ENGINES if wanted == AUTO else (wanted,)
    if wanted not in (AUTO, *ENGINES):
        raise UserError(f"--engine {wanted}", ", ".join((AUTO, PLAIN, *ENGINES)), "choose one")
    installed = [name for name in names if find_spec(name) is not None]
    reason = f"none of {', '.join(names)} is installed (the extra `fast`)" if not installed else ""
    for name in installed:
        found = _try_engine(tokenizer, name)
        if isinstance(found, EngineEncoder):
            logger.info("encoding with %s: it gives the ids of the tokenizers library", found.name)
            return found.name
        reason = found
    if wanted != AUTO:
        raise UserError(f"--engine {wanted}: {reason}", "an engine that gives the same ids", f"use --engine {PLAIN}")
    logger.info("encoding with the tokenizers library: %s", reason)
    return PLAIN


def load_encoder(tokenizer: TextTokenizer, chosen: str) -> TextEncoder:
    """What `choose_engine` has chosen."""
    if chosen == PLAIN:
        return PlainEncoder(tokenizer)
    found = _try_engine(tokenizer, chosen.split()[0])
    if not isinstance(found, EngineEncoder) or found.name != chosen:
        got = f"this machine cannot encode with {chosen}: {found if isinstance(found, str) else found.name}"
        raise UserError(got, "the same engine for the whole preparation", f"install it here, or use --engine {PLAIN}")
    return found


def _try_engine(tokenizer: TextTokenizer, name: str) -> EngineEncoder | str:
    """The engine if it gives the same ids, else why not."""
    if find_spec(name) is None:
        return f"{name} is not installed"
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the engine: the processes are the parallelism
    try:
        engine = importlib.import_module(name).Tokenizer.from_json_str(without_control_tokens(tokenizer))
        wrong = first_difference(tokenizer, engine, list(adversarial_texts(tokenizer)))
    except (ImportError, ValueError, RuntimeError, OSError, NotImplementedError, KeyError, TypeError) as error:
        return f"{name} cannot load this tokenizer: {' '.join(str(error).split())[:200]}"
    full = f"{name} {version(name)}"
    if wrong is not None:
        return f"{full} encodes {wrong[:60]!r} otherwise than the tokenizers library"
    return EngineEncoder(tokenizer, full, engine)


def without_control_tokens(tokenizer: TextTokenizer) -> str:
    """tokenizer.json as an engine is given it: no control tokens, nothing added to a text, cut or filled up."""
    content = json.loads((tokenizer.folder / FILE).read_text(encoding="utf-8"))
    added = [token for token in content["added_tokens"] if not token["special"]]
    changes = {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    return json.dumps({**content, **changes})


def first_difference(tokenizer: TextTokenizer, engine: EngineTokenizer, texts: list[str]) -> str | None:
    """The first text that the engine encodes otherwise than the tokenizer; None where there is none."""
    ids, places = engine.encode_batch_flat(texts)
    found, starts = np.frombuffer(ids, "<u4"), np.frombuffer(places, "<u8").astype(np.int64)
    for number, row in enumerate(tokenizer.encode_all(texts)):
        if not np.array_equal(found[starts[number] : starts[number + 1]], np.array(row, dtype=np.int64)):
            return texts[number]
    return None


SPELLINGS = (
    *("", " ", "  ", "\n", "\r\n", "\t \n", " " * 999, "a" * 3000, "\n" * 300, "-" * 200, "=" * 77 + "\n"),
    *("\x00\x01\x7f", "don't DON'T I'LL we'Ve", "1234567890 1,234.5e-6 ٣٤ ⅷ", "camelCaseHTTPServer snake_case"),
    *(
        "a\u00a0b\u2003c\u3000d",
        "e\u0301 a\u0308 \u00e9 ﬁ Å ½",
        "👩\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈",
        "\u0300\u0301x",
    ),
    *("日本語テキスト 中文 한국어", "سلام שלום हिन्दी ไทย", "\ufeffx\u200by\u2028z\u0085", "\U0010ffff\ue000\ufffd"),
    *("İstanbul ǅ ß ẞ ſ", "<<</s>>> <s ></S>"),
)
RANGES = (
    *((32, 127), (0x80, 0x250), (0x300, 0x370), (0x400, 0x530), (0x2000, 0x2070), (0x4E00, 0x9FFF)),
    (0x1F300, 0x1F6FF),
)


def adversarial_texts(tokenizer: TextTokenizer) -> Iterator[str]:
    """Texts on which tokenizers differ: spelled control tokens, odd white space and scripts, pieces of the vocabulary
    in unusual order, random characters. The same ones each time."""
    yield from SPELLINGS
    for spelling in tokenizer.control_tokens().values():
        yield from (spelling, f" {spelling}x", f"a{spelling}\n{spelling}")
    draw = random.Random(SEED)
    for _ in range(CHECK_TEXTS):
        low, high = draw.choice(RANGES)
        odd = [draw.random() < 0.2 for _ in range(30)]
        yield "".join(draw.choice(" \n\t'1A") if one else chr(draw.randrange(low, high)) for one in odd)
        ids = np.array([draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 12))])
        yield tokenizer.decode(ids)

"""Hugging Face tokenizers as the project uses them: text never turns into control ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nld_train.data.token_file import file_sha256, token_dtype
from nld_train.errors import UserError

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
CONTROL_IDS = 101  # ids 0..100 are control tokens in the published family
MASK_ID = 100
NAMED_CONTROLS = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>"}
UNFINISHED = "\ufffd"  # what decoding gives for the bytes of a character that is not complete
PIECE_CHARACTERS = 1 << 20  # longer texts are encoded in pieces: the library needs about 100 bytes per token


def control_token(token_id: int) -> str:
    """Name of a control token of the published family."""
    assert 0 <= token_id < CONTROL_IDS, f"control ids are 0..{CONTROL_IDS - 1}, got {token_id}"
    return NAMED_CONTROLS.get(token_id, f"<SPECIAL_{token_id}>")


@dataclass(frozen=True)
class ChatTokenIds:
    """Ids with a meaning of their own; in the published family 1, 2, 10, 11 and 100."""

    bos: int
    eos: int
    im_start: int
    im_end: int
    mask: int


@dataclass(frozen=True)
class TextTokenizer:
    """A loaded tokenizer folder."""

    folder: Path
    library: Tokenizer
    fingerprint: str  # SHA-256 of tokenizer.json
    vocab_size: int  # highest id + 1

    def encode(self, text: str) -> NDArray[np.integer]:
        """Tokens [n] of a text, in the dtype of token files. No control id is ever added or recognised.

        A text of more than PIECE_CHARACTERS is cut at line ends first, which may split tokens that span the cut.
        """
        return np.array(self.encode_all([text])[0], dtype=token_dtype(self.vocab_size))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, as `encode` gives them."""
        rows: list[list[int]] = []
        for pieces in (split_text(text, PIECE_CHARACTERS) for text in texts):
            found = self.library.encode_batch_fast(pieces, add_special_tokens=False)
            rows.append(found[0].ids if len(found) == 1 else [token for piece in found for token in piece.ids])
        return rows

    def control_tokens(self) -> dict[int, str]:
        """Spelling of every control token, by id."""
        return {
            number: token.content for number, token in self.library.get_added_tokens_decoder().items() if token.special
        }

    def decode(self, tokens: NDArray[np.integer]) -> str:
        """Text of tokens [n], control tokens by name."""
        return self.library.decode(tokens.tolist(), skip_special_tokens=False)


def split_text(text: str, limit: int) -> list[str]:
    """Cut a text into pieces of at most `limit` characters, behind the last line end within each where there is one."""
    pieces, start = [], 0
    while len(text) - start > limit:
        cut = text.rfind("\n", start, start + limit) + 1 or start + limit
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


def printable_text(text: str) -> str:
    """Text that cannot command a terminal: other control characters than line ends and tabs are written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def tokenizer_file(folder: str | Path) -> Path:
    """Path of tokenizer.json. Raises UserError where it is missing."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(
            f"no {FILE} in {folder}",
            "a Hugging Face tokenizer folder",
            "check the path, or make one with `nld data train-tokenizer`",
        )
    return path


def tokenizer_fingerprint(folder: str | Path) -> str:
    """SHA-256 of a folder's tokenizer.json."""
    return file_sha256(tokenizer_file(folder))


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """Load a tokenizer folder. Raises UserError where it is missing, broken, or takes plain text for control tokens."""
    path = tokenizer_file(folder)
    library = parse_tokenizer_file(path)
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # "</s>" in a document is text
    check_text_stays_text(library, path)
    return TextTokenizer(Path(folder), library, file_sha256(path), max(library.get_vocab().values()) + 1)


def parse_tokenizer_file(path: Path) -> Tokenizer:
    """Parse tokenizer.json, its outline first: the library has no error class of its own to catch."""
    allowed, do = f"a {FILE} of the tokenizers library", "download or make it again"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}", allowed, do) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} holds no model", allowed, do)
    return Tokenizer.from_str(text)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_text_stays_text(library: Tokenizer, path: Path) -> None:
    """Raise UserError where the spelling of a control token is encoded as that token."""
    for token_id, token in library.get_added_tokens_decoder().items():
        if token.special and token_id in library.encode(token.content, add_special_tokens=False).ids:
            raise UserError(
                f"{path} encodes the plain text {token.content!r} as control id {token_id}",
                "tokenizers that keep control tokens out of text",
                "use another tokenizer",
            )


def named_token(tokenizer: TextTokenizer, key: str) -> str:
    """The token that tokenizer_config.json names under `key`, such as eos_token. Raises UserError without one."""
    path = tokenizer.folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"no {CONFIG} in {tokenizer.folder}",
            f"a folder whose {CONFIG} names {key}",
            "copy the whole tokenizer folder",
        )
    token = config_token(read_tokenizer_config(tokenizer.folder), key)
    if token is None:
        raise UserError(f"{path} names no {key}", f"{key} as a string", f"add {key} to the file")
    return token


def read_tokenizer_config(folder: Path) -> dict[str, object]:
    """tokenizer_config.json. Raises UserError where it is no JSON object."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}", "a JSON object", "copy the file again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}", "a JSON object", "copy the file again")
    return config


def config_token(config: dict[str, object], key: str) -> str | None:
    """The token under a key of tokenizer_config.json; None where it names none."""
    token = config.get(key)
    if isinstance(token, dict):  # older folders write the token with its flags
        token = token.get("content")
    return token if isinstance(token, str) else None


def token_id(tokenizer: TextTokenizer, token: str) -> int:
    """Id of a token. Raises UserError where the vocabulary lacks it."""
    found = tokenizer.library.token_to_id(token)
    if found is None:
        raise UserError(
            f"token {token!r} is not in {tokenizer.folder / FILE}",
            "tokens of the vocabulary",
            "use a tokenizer folder whose files belong together",
        )
    return found


def end_of_document_id(tokenizer: TextTokenizer) -> int:
    """The id appended to every document: eos_token of tokenizer_config.json."""
    return token_id(tokenizer, named_token(tokenizer, "eos_token"))


def chat_token_ids(tokenizer: TextTokenizer) -> ChatTokenIds:
    """Special ids of a tokenizer of the family: bos and eos as its config names them, marks and mask by their names."""
    return ChatTokenIds(
        bos=token_id(tokenizer, named_token(tokenizer, "bos_token")),
        eos=end_of_document_id(tokenizer),
        im_start=token_id(tokenizer, control_token(10)),
        im_end=token_id(tokenizer, control_token(11)),
        mask=token_id(tokenizer, control_token(MASK_ID)),
    )

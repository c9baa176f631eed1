"""Hugging Face tokenizers as the project uses them: text never turns into control ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nld_train.data.token_file import file_sha256, token_dtype
from nld_train.errors import UserError
from nld_train.json_file import parse_json_object, read_json_object

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TOKENIZER_FOLDER = "a tokenizer's folder"
SPECIAL_MAP = "special_tokens_map.json"  # where older folders name the special tokens
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
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
    library.encode_special_tokens = True  # "</s>" in a document is text
    check_text_stays_text(library, path)
    return TextTokenizer(Path(folder), library, file_sha256(path), max(library.get_vocab().values()) + 1)


def parse_tokenizer_file(path: Path) -> Tokenizer:
    """Parse tokenizer.json, with the truncation and padding switched off that training tools leave in it.

    Raises UserError where it is no tokenizer, or has parts that the installed library does not know.
    """
    allowed, do = f"a {FILE} of the tokenizers library", "download or make it again"
    content = path.read_bytes()
    if not isinstance(parse_json_object(content, str(path)).get("model"), dict):
        raise UserError(f"{path} holds no model", allowed, do)
    try:
        library = Tokenizer.from_str(content.decode())
    except Exception as error:
        if type(error) is not Exception:  # the library has no error class of its own
            raise
        raise UserError(
            f"{path} cannot be read by tokenizers {version('tokenizers')}: {one_line(error)}",
            f"a {FILE} that this library knows; newer ones write files with new parts",
            "update the library, or save the tokenizer again with this one",
        ) from error
    library.no_truncation()
    library.no_padding()
    return library


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
    """The token that the folder names under `key`, such as eos_token. Raises UserError without one."""
    folder = tokenizer.folder
    if not (folder / CONFIG).is_file() and not (folder / SPECIAL_MAP).is_file():
        raise UserError(
            f"no {CONFIG} in {folder}", f"a folder whose {CONFIG} names {key}", "copy the whole tokenizer folder"
        )
    token = named_tokens(tokenizer).get(key)
    if token is None:
        raise UserError(f"{folder / CONFIG} names no {key}", f"{key} as a string", f"add {key} to the file")
    return token


def named_tokens(tokenizer: TextTokenizer) -> dict[str, str]:
    """The special tokens that a folder names, by key, as transformers finds them: in tokenizer_config.json, and in
    special_tokens_map.json where the former lists no added tokens, as in older folders. Raises UserError where a file
    is no JSON object."""
    config_path, map_path = tokenizer.folder / CONFIG, tokenizer.folder / SPECIAL_MAP
    found = read_json_object(config_path, TOKENIZER_FOLDER) if config_path.is_file() else {}
    if "added_tokens_decoder" not in found and map_path.is_file():
        found = found | read_json_object(map_path, TOKENIZER_FOLDER)
    more = found.get("extra_special_tokens")
    found = found | more if isinstance(more, dict) else found
    keys = [*NAMED_TOKENS, *sorted(key for key in found if key.endswith("_token") and key not in NAMED_TOKENS)]
    return {key: token for key in keys if (token := config_token(found, key)) is not None}


def begin_of_text_id(tokenizer: TextTokenizer) -> int | None:
    """The id of bos_token; None where the folder names none, as many families do. Raises UserError for a token that the
    vocabulary lacks."""
    token = named_tokens(tokenizer).get("bos_token")
    return None if token is None else token_id(tokenizer, token)


def read_tokenizer_config(folder: Path) -> dict[str, object]:
    """tokenizer_config.json. Raises UserError where it is no JSON object."""
    return read_json_object(folder / CONFIG, TOKENIZER_FOLDER)


def config_token(config: dict[str, object], key: str) -> str | None:
    """The token under a key of a tokenizer's file; None where it names none."""
    token = config.get(key)
    if isinstance(token, dict):  # a token with its flags, as AddedToken objects are written
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
    """The id appended to every document: that of eos_token."""
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


def text_ids(tokenizer: TextTokenizer) -> frozenset[int]:
    """The ids that stand for text: those of the vocabulary that are no control tokens."""
    return frozenset(tokenizer.library.get_vocab().values()) - set(tokenizer.control_tokens())


def check_mask_id(tokenizer: TextTokenizer, mask_id: int, setting: str) -> None:
    """Raise UserError where the mask is an ordinary piece of text: it would never be masked, and never be generated.

    setting: how the user gives the id, such as "diffusion.mask_token_id".
    """
    if mask_id not in text_ids(tokenizer):
        return
    free = free_mask_id(tokenizer)
    beyond = "" if free < tokenizer.vocab_size else f" and model.vocab_size={-(-(free + 1) // 128) * 128} or more"
    raise UserError(
        f"{setting}={mask_id} is the text {tokenizer.library.id_to_token(mask_id)!r} in {tokenizer.folder / FILE}",
        "a reserved control token, or an id without text",
        f"set {setting}={free}{beyond}",
    )


def free_mask_id(tokenizer: TextTokenizer) -> int:
    """An id that can serve as mask: mask_token where the folder names one, else the last control token that is reserved
    by its name and otherwise unused, else the first id without text."""
    tokens = named_tokens(tokenizer)
    if "mask_token" in tokens:
        return token_id(tokenizer, tokens["mask_token"])
    spare = ("mask", "reserved", "special_", "unused", "extra", "placeholder")
    for number, name in sorted(tokenizer.control_tokens().items(), reverse=True):
        if name not in tokens.values() and any(word in name.lower() for word in spare):
            return number
    taken = set(tokenizer.library.get_vocab().values())
    return next(number for number in range(len(taken) + 1) if number not in taken)

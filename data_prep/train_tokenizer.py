"""Trains a small byte-level BPE with the special ids of the published family, as a Hugging Face tokenizer folder."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.sources import SUFFIXES, TEXT_KEY, file_pieces, find_files, read_piece
from nld_train.data.chat_template import DEFAULT_TEMPLATE, TEMPLATE
from nld_train.data.tokenizer import CONFIG, CONTROL_IDS, FILE, control_token
from nld_train.errors import UserError
from nld_train.files import staged_folder

VOCAB_SIZE = 2048
SMALLEST_VOCAB = CONTROL_IDS + 256  # the control tokens and one token per byte value
# The words of the chat template stand in no text, and would be spelled letter by letter in every turn.
TEMPLATE_WORDS = ("system\n", "user\n", "assistant\n", "<think>", "</think>")
REPEATED = 10_000  # so that they are merged before the words of the text are
ROLES = {"bos_token": control_token(1), "eos_token": control_token(2), "unk_token": control_token(0)}


def train_tokenizer(
    inputs: Sequence[str | Path],
    folder: str | Path,
    vocab_size: int = VOCAB_SIZE,
    text_key: str = TEXT_KEY,
    overwrite: bool = False,
    chat_words: bool = False,
) -> None:
    """Train on the texts of files or folders and write a tokenizer folder; the same inputs give the same bytes.

    chat_words: whether the words of the chat template become tokens too.

    Ids 0..100 are control tokens (<unk> 0, <s> 1, </s> 2, <|im_start|> 10, <|im_end|> 11, mask 100), then come the 256
    bytes, then merges. Raises UserError for bad input, or for text too small for `vocab_size`; then nothing is written.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise UserError(f"--vocab-size {vocab_size}", f"{SMALLEST_VOCAB} or more", "raise it: 2048 suits a small model")
    files = find_files(inputs, SUFFIXES)
    with staged_folder(Path(folder), overwrite) as partial:
        repeated = repeat("".join(TEMPLATE_WORDS), REPEATED if chat_words else 0)
        library = train_bpe(chain(repeated, document_texts(files, text_key)), vocab_size)
        found = library.get_vocab_size()
        if found != vocab_size:
            raise UserError(
                f"text enough for {found} of {vocab_size} tokens",
                "text in which every merge occurs twice",
                f"give more text, or lower --vocab-size to {found}",
            )
        write_tokenizer_folder(partial, library)


def document_texts(files: Sequence[Path], text_key: str) -> Iterator[str]:
    """All documents, one at a time. Raises UserError at the first bad line."""
    for piece in file_pieces(files, piece_bytes=sys.maxsize):
        for record in read_piece(piece, text_key):
            if record.problem:
                got = f"{piece.path}:{record.line}: {record.problem}"
                raise UserError(got, "UTF-8 text, or .jsonl with a text field", "repair the line")
            yield record.text


def train_bpe(documents: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over GPT-2 style words. Control tokens are given the first ids and take no part in merging."""
    library = Tokenizer(models.BPE(unk_token=None))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(control_token(i), special=True, normalized=False) for i in range(CONTROL_IDS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    library.train_from_iterator(documents, trainer)
    return library


def write_tokenizer_folder(folder: Path, library: Tokenizer) -> None:
    """The four files of a Hugging Face tokenizer folder."""
    (folder / FILE).write_text(library.to_str(pretty=True), encoding="utf-8")  # its own save has no error of a disk
    config = {**ROLES, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_tokenizer_json(folder / CONFIG, config)
    write_tokenizer_json(folder / "special_tokens_map.json", ROLES)
    (folder / TEMPLATE).write_text(DEFAULT_TEMPLATE, encoding="utf-8")


def write_tokenizer_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

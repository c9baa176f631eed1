"""The text of studies: the demo's almanac, made once in the study's folder."""

import logging
from pathlib import Path

from data_prep.almanac import write_almanac
from data_prep.prepare_chat import ChatOptions, prepare_chat
from data_prep.prepare_text import TextOptions, prepare_text
from data_prep.train_tokenizer import train_tokenizer
from nld_train.study.miniature import BLOCK

logger = logging.getLogger(__name__)


def prepare_study_data(folder: Path) -> None:
    """Make what is missing of FOLDER/data: the almanac, a tokenizer, its text and its conversations as token files."""
    data = folder / "data"
    almanac, tokenizer, text, chat = (data / name for name in ("almanac", "tokenizer", "text", "chat"))
    if not almanac.is_dir():
        logger.info("writing the almanac into %s", almanac)
        write_almanac(almanac)
    if not tokenizer.is_dir():
        train_tokenizer([almanac / "text.jsonl"], tokenizer, chat_words=True)
    if not text.with_suffix(".idx").is_file():
        prepare_text([almanac / "text.jsonl"], text, tokenizer, TextOptions())
    if not chat.with_suffix(".idx").is_file():
        prepare_chat([almanac / "chat.jsonl"], chat, tokenizer, ChatOptions(fill_blocks=BLOCK))

"""Chat files and small text files made by hand, for tests that must know every token."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nld_train.config import RunConfig
from nld_train.data.chat_template import DEFAULT_SHA256
from nld_train.data.manifest import FORMAT_VERSION, ChatManifest, Manifest, write_manifest
from nld_train.data.supervision import SupervisionWriter
from nld_train.data.token_file import TokenFileSummary, TokenFileWriter, token_dtype

VOCABULARY = 400
END_OF_TURN = 11

Conversation = tuple[NDArray[np.integer], NDArray[np.bool_]]  # tokens [n], supervised [n]


def conversation(length: int, *, prompt: int, seed: int) -> Conversation:
    """A prompt, then an answer that ends with the end-of-turn token; the answer is supervised."""
    tokens = np.random.default_rng(seed).integers(101, VOCABULARY, length).astype(token_dtype(VOCABULARY))
    tokens[-1] = END_OF_TURN
    return tokens, np.arange(length) >= prompt


def write_chat_file(prefix: Path, conversations: Sequence[Conversation], tokenizer_sha256: str = "0" * 64) -> Path:
    """PREFIX.bin, .idx, .supervised.bin and .manifest.json."""
    with TokenFileWriter(prefix, token_dtype(VOCABULARY)) as writer, SupervisionWriter(prefix) as supervision:
        for tokens, supervised in conversations:
            writer.append(tokens)
            supervision.append(supervised)
        summary, supervised_sha256 = writer.finish(), supervision.finish()
    chat = ChatManifest(
        conversations=len(conversations),
        supervised_tokens=supervision.supervised_tokens,
        dropped={},
        left_out={},
        unread={},
        losses={},
        losses_allowed=False,
        chosen=False,
        template="chat_template.jinja",
        date=None,
        bos_token_id=1,
        template_sha256=DEFAULT_SHA256,
        end_of_turn_id=END_OF_TURN,
        thinking=False,
        last_turn_only=False,
        supervised_sha256=supervised_sha256,
    )
    write_file_manifest(prefix, summary, chat, tokenizer_sha256)
    return prefix


def write_text_file(prefix: Path, count: int, length: int) -> str:
    """A file of plain text: `count` documents of `length` random tokens each."""
    with TokenFileWriter(prefix, token_dtype(VOCABULARY)) as writer:
        for seed in range(count):
            writer.append(conversation(length, prompt=0, seed=seed)[0])
        write_file_manifest(prefix, writer.finish(), None, "0" * 64)
    return str(prefix)


def write_file_manifest(
    prefix: Path, summary: TokenFileSummary, chat: ChatManifest | None, tokenizer_sha256: str
) -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tool_version="0",
        sources=["chat.jsonl"],
        files=1,
        empty_files=0,
        bad_lines=0,
        text_bytes=1,
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=VOCABULARY,
        end_of_document_id=None,
        chat=chat,
        **vars(summary),
    )
    write_manifest(prefix, manifest)


def on_conversations(run: RunConfig, folder: Path) -> RunConfig:
    """The run on a blend of two chat files, written into `folder`: answers of 3 to 43 tokens behind short and long
    prompts, so that rows, and ranks, differ in how much of them is supervised."""
    for name, prompt in (("short", 4), ("long", 20)):
        lengths = [prompt + 3 + 7 * i % 41 for i in range(120)]
        write_chat_file(folder / name, [conversation(n, prompt=prompt, seed=i) for i, n in enumerate(lengths)])
    return replace(
        run,
        diffusion=replace(run.diffusion, document_mask=True),
        data=replace(run.data, blend=(f"0.6:{folder}/short", f"0.4:{folder}/long"), chat=True),
    )

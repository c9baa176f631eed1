import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nld_train.data.manifest import (
    FORMAT_VERSION,
    ChatManifest,
    Manifest,
    check_token_file,
    check_token_file_tokenizer,
    end_of_turn_id,
    manifest_path,
    parse_blend,
    read_manifest,
    unigram_entropy,
    write_manifest,
)
from nld_train.data.supervision import SupervisionWriter, supervised_path
from nld_train.data.token_file import TokenFileWriter, bin_path, idx_path, token_dtype
from nld_train.data.tokenizer import tokenizer_fingerprint
from nld_train.errors import UserError


def make(prefix: Path, documents: list[list[int]], tokenizer_sha256: str = "0" * 64) -> Manifest:
    with TokenFileWriter(prefix, token_dtype(400)) as writer:
        for document in documents:
            writer.append(np.array(document, dtype=np.uint16))
        summary = writer.finish()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tool_version="0",
        sources=["text"],
        files=1,
        empty_files=0,
        bad_lines=0,
        text_bytes=9,
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=400,
        end_of_document_id=2,
        **vars(summary),
    )
    write_manifest(prefix, manifest)
    return manifest


def make_chat(prefix: Path) -> Manifest:
    manifest = make(prefix, [[3, 2], [4, 2]])
    with SupervisionWriter(prefix) as writer:
        for _ in range(2):
            writer.append(np.array([False, True]))
        digest = writer.finish()
    chat = ChatManifest(
        conversations=2,
        supervised_tokens=2,
        dropped={"empty answer": 3},
        left_out={},
        unread={"id": 2},
        losses={},
        losses_allowed=False,
        chosen=False,
        template="chat_template.jinja",
        date=None,
        bos_token_id=1,
        template_sha256="0" * 64,
        end_of_turn_id=11,
        thinking=False,
        last_turn_only=True,
        supervised_sha256=digest,
    )
    manifest = replace(manifest, chat=chat)
    write_manifest(prefix, manifest)
    return manifest


def edit(prefix: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(manifest_path(prefix).read_text())
    change(content)
    manifest_path(prefix).write_text(json.dumps(content))


def flip_a_token(prefix: Path) -> None:
    data = bytearray(bin_path(prefix).read_bytes())
    data[0] ^= 1
    bin_path(prefix).write_bytes(data)


def test_a_manifest_comes_back_as_written(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a", [[3, 2]])
    assert read_manifest(tmp_path / "a") == manifest == check_token_file(tmp_path / "a", verify_hashes=True)


def test_a_chat_manifest_comes_back_as_written(tmp_path: Path) -> None:
    manifest = make_chat(tmp_path / "a")
    assert read_manifest(tmp_path / "a") == manifest == check_token_file(tmp_path / "a", verify_hashes=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda prefix: supervised_path(prefix).unlink(), "no file"),
        (lambda prefix: supervised_path(prefix).write_bytes(b"\0"), "1 bytes"),
        (lambda prefix: edit(prefix, lambda content: content["chat"].pop("thinking")), "unknown thinking"),
        (lambda prefix: edit(prefix, lambda content: content.update(chat=1)), "chat is '1'"),
        (lambda prefix: edit(prefix, lambda content: content.update(format_version=1)), "format_version 1"),
    ],
)
def test_a_chat_file_that_is_not_whole_is_refused(tmp_path: Path, damage, said: str) -> None:
    make_chat(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=said) as error:
        check_token_file(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_changed_supervision_is_found_by_its_hash(tmp_path: Path) -> None:
    make_chat(tmp_path / "a")
    supervised_path(tmp_path / "a").write_bytes(b"\0\1\0\0")
    check_token_file(tmp_path / "a")
    with pytest.raises(UserError, match="SHA-256"):
        check_token_file(tmp_path / "a", verify_hashes=True)


def test_the_tokenizer_of_the_file_is_accepted_and_another_refused(tmp_path: Path, byte_tokenizer: Path) -> None:
    make(tmp_path / "a", [[3, 2]], tokenizer_fingerprint(byte_tokenizer))
    assert check_token_file_tokenizer(tmp_path / "a", byte_tokenizer).tokens == 2
    path = byte_tokenizer / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="was made with tokenizer") as error:
        check_token_file_tokenizer(tmp_path / "a", byte_tokenizer)
    assert str(byte_tokenizer) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda prefix: bin_path(prefix).unlink(), "no file"),
        (lambda prefix: idx_path(prefix).unlink(), "no file"),
        (lambda prefix: manifest_path(prefix).unlink(), "no file"),
        (lambda prefix: manifest_path(prefix).write_text("{"), "not JSON"),
        (lambda prefix: manifest_path(prefix).write_text("[]"), "holds no object"),
        (lambda prefix: manifest_path(prefix).write_text('{"chat": 1, "chat": null}'), "'chat' stands twice"),
        (lambda prefix: edit(prefix, lambda content: content.update(tokenizer_sha256=3)), "tokenizer_sha256 is '3'"),
        (lambda prefix: edit(prefix, lambda content: content.update(sources=["a", 1])), "sources is"),
        (lambda prefix: edit(prefix, lambda content: content.update(unread={"a": "b"})), "unread is"),
        (lambda prefix: edit(prefix, lambda content: content.update(documents=True)), "documents is 'True'"),
        (lambda prefix: edit(prefix, lambda content: content.update(format_version=99)), "format_version 99"),
        (lambda prefix: edit(prefix, lambda content: content.pop("tokens")), "unknown tokens"),
        (lambda prefix: edit(prefix, lambda content: content.update(extra=1)), "unknown extra"),
        (lambda prefix: edit(prefix, lambda content: content.update(bin_bytes=5)), "bytes"),
        (lambda prefix: edit(prefix, lambda content: content.update(tokens=5)), "5 tokens"),
        (lambda prefix: bin_path(prefix).write_bytes(b"12"), "2 bytes"),
    ],
)
def test_a_set_that_does_not_belong_together_is_refused_in_one_line(tmp_path: Path, damage, said: str) -> None:
    make(tmp_path / "a", [[3, 2], [4, 2]])
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=said) as error:
        check_token_file(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_changed_token_is_found_by_its_hash_only(tmp_path: Path) -> None:
    make(tmp_path / "a", [[3, 2]])
    flip_a_token(tmp_path / "a")
    check_token_file(tmp_path / "a")
    with pytest.raises(UserError, match="SHA-256"):
        check_token_file(tmp_path / "a", verify_hashes=True)


def test_a_blend_is_weighted_throughout_or_not_at_all() -> None:
    assert parse_blend(("0.7:a/b", "3e-1:c")) == [(0.7, "a/b"), (0.3, "c")]
    assert parse_blend(("a", "b")) == [(None, "a"), (None, "b")]


@pytest.mark.parametrize(
    ("entries", "said"),
    [(("0.7:a", "b"), "for every prefix, or for none"), (("x:a",), "number as weight"), (("0:a",), "above 0"),
     (("-1:a",), "above 0"), (("nan:a",), "above 0"), (("inf:a",), "above 0"), (("0.5:",), "PREFIX"), (("",), "PREFIX"),
     (("1:a", "2:a"), "twice")],
)  # fmt: skip
def test_a_blend_that_cannot_be_meant_is_refused(entries: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_blend(entries)


def test_entropy_of_known_frequencies(tmp_path: Path) -> None:
    make(tmp_path / "even", [[3, 4], [5, 6]])
    assert unigram_entropy(tmp_path / "even") == pytest.approx(math.log(4))
    make(tmp_path / "one", [[3, 3, 3, 3]])
    assert unigram_entropy(tmp_path / "one") == pytest.approx(0)
    pooled = -(5 / 8 * math.log(5 / 8) + 3 * math.log(1 / 8) / 8)
    assert unigram_entropy(tmp_path / "even", tmp_path / "one") == pytest.approx(pooled)


def test_plain_text_of_the_version_before_is_read_and_conversations_are_not(tmp_path: Path) -> None:
    make(tmp_path / "text", [[3, 2]])
    edit(tmp_path / "text", lambda content: content.update(format_version=2))
    assert read_manifest(tmp_path / "text").format_version == 2
    make_chat(tmp_path / "chat")
    edit(tmp_path / "chat", lambda content: content.update(format_version=2))
    with pytest.raises(UserError, match="format_version 2; allowed: 3"):
        read_manifest(tmp_path / "chat")


def test_answers_of_all_files_end_alike(tmp_path: Path) -> None:
    make(tmp_path / "text", [[3, 2]])
    make_chat(tmp_path / "a")
    make_chat(tmp_path / "b")
    assert end_of_turn_id([str(tmp_path / name) for name in ("text", "a", "b")]) == 11
    assert end_of_turn_id([str(tmp_path / "text")]) is None
    edit(tmp_path / "b", lambda content: content["chat"].update(end_of_turn_id=2))
    with pytest.raises(UserError, match=r"different tokens: 11 in .*a, 2 in .*b"):
        end_of_turn_id([str(tmp_path / name) for name in ("a", "b")])

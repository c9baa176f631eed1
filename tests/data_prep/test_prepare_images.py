"""Conversations with images, from files to chat files."""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep import image_shards
from data_prep import prepare_chat as module
from data_prep.image_check import CLEAR, ImageRules
from data_prep.prepare_chat import ChatOptions, prepare_chat
from nld_train.data.image_store import ImageIndex, ImagesManifest, StoredImages, images_folder
from nld_train.data.manifest import Manifest, check_token_file, read_manifest
from nld_train.data.supervision import Supervision
from nld_train.data.token_file import TokenFile
from nld_train.errors import UserError
from tests.data_prep.image_files import (
    BREAK,
    END,
    IMG,
    NAMES,
    asked,
    at,
    draw_image,
    encode_image,
    save_image,
    write_rows,
)

RULES = ImageRules(names=("<SPECIAL_12>", "<SPECIAL_13>", "<SPECIAL_14>"))
DROPPING = """\
{%- for turn in messages -%}
    {{- '<|im_start|>' + turn.role + '\\n' -}}
    {%- if turn.content is string -%}
        {{- turn.content -}}
    {%- else -%}
        {%- for part in turn.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>' -}}
{%- endfor -%}
"""
ONE = ChatOptions(workers=1, images=RULES)


def images_of(manifest: Manifest) -> ImagesManifest:
    assert manifest.chat is not None and manifest.chat.images is not None
    return manifest.chat.images


def every_file(prefix: Path) -> dict[str, bytes]:
    found = [*prefix.parent.glob(f"{prefix.name}.*"), *images_folder(prefix).glob("*")]
    return {str(path.relative_to(prefix.parent)): path.read_bytes() for path in found if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Sixty conversations: with one of seven images, with two, and with none."""
    for number in range(7):
        save_image(tmp_path / "in" / "pictures" / f"{number}.png", 60 + 30 * number, 90, number)
    rows = []
    for number in range(60):
        url = at(f"pictures/{number % 7}.png")
        parts = [f"what is {number} ", *([url] if number % 3 else []), *(["and ", url] if number % 5 == 4 else [])]
        rows.append(asked(*parts, answer=f"thing {number}"))
    return write_rows(tmp_path / "in" / "a.jsonl", rows)


def test_tokens_hold_the_image_in_its_place_and_the_files_what_came(tmp_path: Path, tokenizer: Path) -> None:
    first, second = save_image(tmp_path / "a.png", 70, 50, 1), save_image(tmp_path / "b.png", 28, 29, 2)
    rows = [
        asked("see ", at("a.png"), " and ", at("b.png"), " well"),
        asked("no image, but <image> and <SPECIAL_12>"),
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "ho"}],
        },
    ]
    manifest = prepare_chat([write_rows(tmp_path / "in.jsonl", rows)], tmp_path / "chat", tokenizer, ONE)
    tokens, counts = TokenFile(tmp_path / "chat"), Supervision(tmp_path / "chat")
    wide, tall = [IMG, IMG, IMG, BREAK, IMG, IMG, IMG, END], [IMG, BREAK, IMG, END]
    special = [[token for token in tokens[document] if token in (IMG, BREAK, END)] for document in range(3)]
    assert special == [wide + tall, [], wide]
    index = ImageIndex(tmp_path / "chat")
    assert index.ranges.tolist() == [0, 2, 2, 3] and index.document_tokens().tolist() == [12, 0, 8]
    stored = StoredImages(tmp_path / "chat", images_of(manifest))
    found = [image for document in range(3) for image in stored.of(document, 0)]
    assert [(image.rows, image.columns, image.data) for image in found] == [
        (2, 3, first),
        (2, 1, second),
        (2, 3, first),
    ]
    for document, start, length in ((0, found[0].start, 8), (0, found[1].start, 4), (2, found[2].start, 8)):
        assert tokens[document][start] == IMG and tokens[document][start + length - 1] == END
        assert not counts.of(document)[start : start + length].any()
    images = images_of(manifest)
    assert (images.images, images.files, images.image_tokens) == (3, 2, 20)
    assert (images.image_token_id, images.break_token_id, images.end_token_id) == (IMG, BREAK, END)
    with tarfile.open(images_folder(tmp_path / "chat") / "shard-00000.tar") as shard:
        held = {member.name: shard.extractfile(member).read() for member in shard}
    assert held == {f"{sha256(data).hexdigest()}.png": data for data in (first, second)}
    assert manifest == read_manifest(tmp_path / "chat") == check_token_file(tmp_path / "chat", verify_hashes=True)


def test_parquet_with_bytes_gives_what_paths_give(source: Path, tmp_path: Path, tokenizer: Path) -> None:
    pictures = [(tmp_path / "in" / "pictures" / f"{number}.png").read_bytes() for number in range(7)]
    texts = [[{"user": f"what is {number}", "assistant": f"thing {number}"}] for number in range(7)]
    struct = [
        {"images": [{"bytes": data, "path": None}], "texts": text} for data, text in zip(pictures, texts, strict=True)
    ]
    binary = [{"images": [data], "texts": text} for data, text in zip(pictures, texts, strict=True)]
    paths = [{"images": [f"pictures/{number}.png"], "texts": text} for number, text in enumerate(texts)]
    for name, rows in (("struct", struct), ("binary", binary)):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=3)
        prepare_chat([tmp_path / f"{name}.parquet"], tmp_path / name / "chat", tokenizer, ONE)
    prepare_chat([write_rows(tmp_path / "in" / "b.jsonl", paths)], tmp_path / "paths" / "chat", tokenizer, ONE)
    one, *others = [every_file(tmp_path / name / "chat") for name in ("paths", "struct", "binary")]
    for files in (one, *others):
        files.pop("chat.manifest.json")  # it has the name of the input
    assert len(one) == 6 and one == others[0] == others[1]


def test_workers_and_interruptions_change_nothing(
    source: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 700)
    monkeypatch.setattr(image_shards, "SHARD_BYTES", 40_000)
    prepare_chat([source], tmp_path / "one" / "chat", tokenizer, ONE)
    prepare_chat([source], tmp_path / "two" / "chat", tokenizer, replace(ONE, workers=2))
    whole, parts = module.finish_part, []

    def stop_at_the_fifth(task: object) -> object:
        if len(parts) == 4:
            raise KeyboardInterrupt
        parts.append(task)
        return whole(task)

    monkeypatch.setattr(module, "finish_part", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        prepare_chat([source], tmp_path / "cut" / "chat", tokenizer, ONE)
    assert not list((tmp_path / "cut").glob("chat*"))
    monkeypatch.setattr(module, "finish_part", whole)
    prepare_chat([source], tmp_path / "cut" / "chat", tokenizer, ONE)
    one = every_file(tmp_path / "one" / "chat")
    assert one == every_file(tmp_path / "two" / "chat") == every_file(tmp_path / "cut" / "chat")
    images = images_of(read_manifest(tmp_path / "one" / "chat"))
    assert images.files == 7 and 2 < len(images.shard_bytes) < 7 and max(images.shard_bytes) <= 40_000 + 10_240
    stored = StoredImages(tmp_path / "one" / "chat", images)
    pictures = {(tmp_path / "in" / "pictures" / f"{number}.png").read_bytes() for number in range(7)}
    assert {image.data for document in range(60) for image in stored.of(document, 0)} == pictures


def test_a_file_of_text_is_as_it_was(tmp_path: Path, tokenizer: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"see <image> {n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(9)
    ]
    manifest = prepare_chat([write_rows(tmp_path / "in.jsonl", rows)], tmp_path / "chat", tokenizer, ONE)
    assert manifest.chat is not None and manifest.chat.images is None
    assert "images" not in json.loads((tmp_path / "chat.manifest.json").read_text())["chat"]
    assert sorted(path.name for path in tmp_path.glob("chat*")) == [
        f"chat.{end}" for end in ("bin", "idx", "manifest.json", "supervised.bin")
    ]
    assert read_manifest(tmp_path / "chat") == manifest


def test_bad_images_are_named_with_their_line_counted_and_skipped(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = save_image(tmp_path / "a.png", 60, 60)
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    rows = [
        asked("one ", at("a.png")),
        asked("two ", at("cut.png")),
        asked("three ", at("missing.png")),
        asked("four ", at("https://a.b/c.png")),
        asked("five ", {"type": "image"}),
        asked("six ", at("../a.png")),
        asked("seven"),
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserError, match=r"more than 0 bad lines, the first: .*in\.jsonl:2: a broken image: "):
        prepare_chat([source], tmp_path / "chat", tokenizer, ONE)
    assert not list(tmp_path.glob("chat*"))
    manifest = prepare_chat([source], tmp_path / "chat", tokenizer, replace(ONE, max_bad_lines=5))
    assert manifest.chat is not None and manifest.bad_lines == 5 and manifest.documents == 2
    assert manifest.chat.dropped == {
        "a broken image": 1,
        "an image behind a URL, and nothing is downloaded": 1,
        "an image outside of its folder, which --image-folder may name": 1,
        "more places for images than images": 1,
        "no image file": 1,
    }
    assert f"skipped {source}:3: no image file: missing.png" in caplog.text


def test_what_is_converted_is_counted_in_the_manifest(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_image(draw_image(60, 60, mode="RGBA")))
    rows = [asked("one ", at("a.png")), asked("two ", at("a.png"), at("a.png"))]
    manifest = prepare_chat([write_rows(tmp_path / "in.jsonl", rows)], tmp_path / "chat", tokenizer, ONE)
    assert images_of(manifest).converted == {CLEAR: 3}


def test_a_template_that_drops_the_image_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    shutil.copytree(tokenizer, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text(DROPPING)
    save_image(tmp_path / "a.png", 60, 60)
    source = write_rows(tmp_path / "in.jsonl", [asked("one ", at("a.png"))])
    with pytest.raises(UserError, match="does not write every image once: 0 of 1 images as <SPECIAL_12>"):
        prepare_chat([source], tmp_path / "chat", tmp_path / "other", ONE)


def test_a_tokenizer_without_image_tokens_refuses_images_alone(tmp_path: Path, tokenizer: Path) -> None:
    save_image(tmp_path / "a.png", 60, 60)
    source = write_rows(tmp_path / "in.jsonl", [asked("one ", at("a.png")), asked("two")])
    with pytest.raises(UserError, match="the tokenizer has no tokens for it: --image-tokens names them"):
        prepare_chat([source], tmp_path / "chat", tokenizer, ChatOptions(workers=1))
    names = ("<SPECIAL_12>", "[NONE]", "<SPECIAL_14>")
    with pytest.raises(UserError, match=r"\[NONE\] is no control token"):
        prepare_chat([source], tmp_path / "chat", tokenizer, ChatOptions(workers=1, images=ImageRules(names=names)))


def test_the_command_names_tokens_sizes_and_folder(tmp_path: Path, tokenizer: Path, nld: Callable[..., int]) -> None:
    save_image(tmp_path / "pictures" / "a.png", 600, 60)
    (tmp_path / "in").mkdir()
    source = write_rows(tmp_path / "in" / "x.jsonl", [asked("one ", at("a.png"))])
    words = ["data", "prepare-chat", source, "--tokenizer", tokenizer, "--output", tmp_path / "chat", "--workers", 1]
    words += ["--image-tokens", NAMES, "--image-folder", tmp_path / "pictures"]
    assert nld(*words, "--patch-size", 10, "--merge", 1, "--longest-edge", 200) == 0
    images = images_of(read_manifest(tmp_path / "chat"))
    assert (images.patch_size, images.merge, images.longest_edge, images.image_tokens) == (10, 1, 200, 2 * 21)
    with pytest.raises(UserError, match="three names"):
        nld(*words[:-2], "--image-tokens", "one,two", "--overwrite")


def test_overwriting_takes_the_old_images_away(source: Path, tmp_path: Path, tokenizer: Path) -> None:
    prepare_chat([source], tmp_path / "chat", tokenizer, ONE)
    text = write_rows(tmp_path / "b.jsonl", [asked("no image")])
    with pytest.raises(UserError, match="exists already"):
        prepare_chat([text], tmp_path / "chat", tokenizer, ONE)
    prepare_chat([source], tmp_path / "chat", tokenizer, replace(ONE, overwrite=True))
    check_token_file(tmp_path / "chat", verify_hashes=True)
    prepare_chat([text], tmp_path / "chat", tokenizer, replace(ONE, overwrite=True))
    assert not images_folder(tmp_path / "chat").exists()


def test_images_behind_the_last_answer_go_with_the_text_that_filling_cuts(tmp_path: Path, tokenizer: Path) -> None:
    save_image(tmp_path / "a.png", 60, 60)
    row = asked("one ", at("a.png"))
    row["messages"].append({"role": "user", "content": [at("a.png")]})
    source = write_rows(tmp_path / "in.jsonl", [row])
    manifest = prepare_chat([source], tmp_path / "chat", tokenizer, replace(ONE, fill_blocks=8))
    assert images_of(manifest).images == 1 and manifest.chat is not None
    assert manifest.chat.losses["images behind the last answer, left out with the text there"] == 1
    assert (TokenFile(tmp_path / "chat")[0] == END).sum() == 1


@pytest.mark.parametrize("name", ["shard-00000.tar", "images.npy", "documents.npy"])
def test_a_changed_or_missing_file_of_images_is_found(source: Path, tmp_path: Path, tokenizer: Path, name: str) -> None:
    prepare_chat([source], tmp_path / "chat", tokenizer, ONE)
    path = images_folder(tmp_path / "chat") / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} has SHA-256"):
        check_token_file(tmp_path / "chat", verify_hashes=True)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match="make the files again"):
        check_token_file(tmp_path / "chat")
    path.unlink()
    with pytest.raises(UserError, match=f"no file .*{name}"):
        check_token_file(tmp_path / "chat")


def test_records_of_parts_keep_digests_that_end_with_zeros(tmp_path: Path) -> None:
    records = np.array([(0, 1, 2, 3, 0, 0, 5, b"\x01" + bytes(31), b".png")], image_shards.RECORD)
    assert records[0]["digest"].tobytes() == b"\x01" + bytes(31)


def test_inspecting_shows_images_by_their_sizes(
    tmp_path: Path, tokenizer: Path, nld: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png", 448, 308)
    save_image(tmp_path / "b.png", 1600, 20)
    source = write_rows(tmp_path / "in.jsonl", [asked("see ", at("a.png"), " and ", at("b.png"), answer="a thing")])
    words = ["--tokenizer", tokenizer]
    rules = ("--workers", 1, "--image-tokens", NAMES)
    assert nld("data", "prepare-chat", source, *words, "--output", tmp_path / "chat", *rules) == 0
    assert "images: 2 of 2 files, 243 tokens" in capsys.readouterr().out
    assert nld("data", "inspect", tmp_path / "chat", *words, "--verify") == 0
    said = capsys.readouterr().out
    assert "see [image 448x308 -> 16x11 cells] and [image 1600x20 -> 55x1 cells]<|im_end|>" in said
    assert "chat, images, longest_edge: 1,540" in said and "<SPECIAL_12>" not in said


def test_inspecting_shows_the_first_tokens_of_text_and_the_images_among_them(
    tmp_path: Path, tokenizer: Path, nld: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png", 56, 56)
    source = write_rows(tmp_path / "in.jsonl", [asked(at("a.png"), "x7 " * 300, at("a.png"))])
    prepare_chat([source], tmp_path / "chat", tokenizer, ONE)
    assert nld("data", "inspect", tmp_path / "chat", "--tokenizer", tokenizer) == 0
    said = capsys.readouterr().out
    assert "the first 200 of text shown" in said and "[image 56x56 -> 2x2 cells]x7 x7" in said
    assert said.count("[image") == 1 and "a thing" not in said

"""Rows of conversations with images: what stands where, and which files go with which run."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from data_prep.image_check import ImageRules
from data_prep.prepare_chat import ChatOptions, prepare_chat
from nld_train import recipe
from nld_train.config import DataConfig, RunConfig
from nld_train.data.blended_rows import Sample
from nld_train.data.chat_packing import describe_split, make_packing, packing_key
from nld_train.data.chat_rows import ChatFileRows
from nld_train.data.identity import file_identity
from nld_train.data.manifest import payload_digests, read_manifest
from nld_train.data.packing import pack_documents
from nld_train.data.run_rows import check_data_parts, open_run_rows
from nld_train.data.token_file import TokenFile
from nld_train.errors import UserError
from nld_train.vision_config import VisionConfig
from tests.data.conftest import write_byte_tokenizer
from tests.data_prep.image_files import BREAK, END, IMG, asked, at, save_image, write_rows

BLOCK = 4
DATA = DataConfig(
    blend=("nowhere",), tokenizer="nowhere", sequence_length=256, text_length=160, split="100,0,0", chat=True
)
VISION = VisionConfig(image_token_id=IMG, break_token_id=BREAK, end_token_id=END)
NAMES = ("<SPECIAL_12>", "<SPECIAL_13>", "<SPECIAL_14>")


def prepare(folder: Path, rows: Sequence[object], name: str = "chat") -> Path:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        write_byte_tokenizer(tokenizer)
    options = ChatOptions(workers=1, images=ImageRules(names=NAMES))
    prepare_chat([write_rows(folder / f"{name}.jsonl", rows)], folder / name, tokenizer, options)
    return folder / name


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations of about 100 tokens of text; every second one has an image of 12 to 156 tokens."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(20):
        save_image(folder / f"{number}.png", 80 + 16 * number, 80 + 10 * number, number)
    rows = [asked(f"number {n} ", *([at(f"{n // 2}.png")] if n % 2 else ["nothing"])) for n in range(40)]
    return prepare(folder, rows)


def rows_of(prefix: Path, data: DataConfig) -> ChatFileRows:
    return ChatFileRows(str(prefix), make_packing(str(prefix), data, BLOCK)["train"].rows, data)


def test_rows_keep_both_budgets_and_say_which_tokens_are_clean_alone(mixed: Path) -> None:
    rows, tokens, seen = rows_of(mixed, DATA), TokenFile(mixed), 0
    for number in range(len(rows)):
        sample, documents = rows[number], rows.rows[number]
        assert sample["tokens"][: len(sample["clean_only"])].shape == sample["clean_only"].shape == (256,)
        padding = 257 - sample["document_lengths"][-1]
        special = np.isin(sample["tokens"][:-1], (IMG, BREAK, END)) | (np.arange(256) >= padding)
        assert np.array_equal(sample["clean_only"], special) and (~special).sum() <= 160
        assert np.array_equal(sample["tokens"][:padding], np.concatenate([tokens[int(d)] for d in documents]))
        for image in sample["images"]:
            span = sample["tokens"][image.start : image.start + image.rows * (image.columns + 1)]
            row = [IMG] * image.columns + [BREAK]
            assert span.tolist() == [*(row * image.rows)[:-1], END] and not sample["supervised"][image.start]
            pictures = [(mixed.parent / f"{int(d) // 2}.png").read_bytes() for d in documents if int(d) % 2]
            assert image.data in pictures and (image.cell, image.longest_edge) == (28, 1540)
        starts = [image.start for image in sample["images"]]
        assert starts == sorted(starts)
        seen += len(starts)
    assert seen == 20 and len(rows) < 40


def test_a_row_without_images_says_so_in_a_file_with_images(mixed: Path) -> None:
    rows = rows_of(mixed, replace(DATA, sequence_length=256, text_length=128))
    bare = [sample for sample in map(rows.__getitem__, range(len(rows))) if not sample["images"]]
    assert bare and all(sample["clean_only"].sum() == sample["document_lengths"][-1] - 1 for sample in bare)


def test_text_in_rows_of_few_text_tokens_has_padding_in_the_clean_half_alone(tmp_path: Path) -> None:
    prefix = prepare(tmp_path, [asked(f"number {n}" * 3) for n in range(9)])
    sample = rows_of(prefix, DATA)[0]
    assert sample["images"] == () and (~sample["clean_only"]).sum() <= 160
    whole = rows_of(prefix, replace(DATA, text_length=None))[0]
    assert "clean_only" not in whole and "images" not in whole


def read_in_child(rows: ChatFileRows, numbers: Sequence[int]) -> list[bytes]:
    return [image.data for number in numbers for image in rows[number]["images"]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_bytes(mixed: Path, method: str) -> None:
    rows = rows_of(mixed, DATA)
    numbers = list(range(len(rows)))
    here = read_in_child(rows, numbers)
    with get_context(method).Pool(2) as pool:
        halves = pool.starmap(read_in_child, [(rows, numbers[:3]), (rows, numbers[3:])])
    assert halves[0] + halves[1] == here == read_in_child(pickle.loads(pickle.dumps(rows)), numbers)


def test_conversations_with_images_are_never_cut(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 28 * 12, 28 * 12)  # 156 tokens
    save_image(tmp_path / "b.png", 28 * 18, 28 * 18)  # 342 tokens
    long = "so " * 40
    rows = [
        asked(at("a.png"), "what"),
        asked(at("b.png"), "what"),  # longer than a row
        asked(at("a.png"), long),  # more text than a row may have
        asked("why", answer=long),  # text alone: cut
        asked("why"),
    ]
    prefix = prepare(tmp_path, rows)
    data = replace(DATA, text_length=96)
    plan = make_packing(str(prefix), data, BLOCK)["train"]
    assert sorted(plan.rows.documents.tolist()) == [0, 3, 4]
    counts = plan.counts
    assert (counts.conversations, counts.cut, counts.dropped, counts.dropped_images) == (3, 1, 2, 2)
    said = describe_split("chat", data, "train", counts)
    assert "1 cut at a row's length, 2 left out (2 with images, which are never cut)" in said
    assert "their 96 text tokens" in said
    opened = ChatFileRows(str(prefix), plan.rows, data)
    assert all((~opened[number]["clean_only"]).sum() <= 96 for number in range(len(opened)))
    dropped = make_packing(str(prefix), replace(data, long_conversations="drop"), BLOCK)["train"].counts
    assert (dropped.cut, dropped.dropped, dropped.dropped_images) == (0, 3, 2)


def test_without_a_text_budget_rows_are_those_of_before(mixed: Path) -> None:
    data = replace(DATA, text_length=None)
    rows, lengths = make_packing(str(mixed), data, BLOCK)["train"].rows, TokenFile(mixed).lengths
    expected = pack_documents(np.asarray(lengths, np.int64), 256)
    assert np.array_equal(rows.starts, expected.starts)
    assert [sorted(rows[n].tolist()) for n in range(len(rows))] == [
        sorted(expected[n].tolist()) for n in range(len(rows))
    ]


def test_the_kept_plan_depends_on_the_text_budget_and_on_the_images(mixed: Path) -> None:
    keys = {packing_key(str(mixed), replace(DATA, text_length=text), BLOCK) for text in (None, 256, 160, 128)}
    assert len(keys) == 3, "none means the row's length"


def test_images_belong_to_what_is_verified_and_to_the_identity(mixed: Path, tmp_path: Path) -> None:
    names = {path.name for path in payload_digests(mixed, read_manifest(mixed))}
    assert {"shard-00000.tar", "images.npy", "documents.npy"} <= names
    save_image(tmp_path / "a.png", 40, 40, 1)
    one = file_identity(str(prepare(tmp_path, [asked(at("a.png"), "what")], "one")))
    save_image(tmp_path / "a.png", 40, 40, 2)
    assert one != file_identity(str(prepare(tmp_path, [asked(at("a.png"), "what")], "two"))), "tokens are the same"


def run_on(prefix: Path, vision: VisionConfig | None) -> RunConfig:
    run = recipe.load_recipe("tiny_stage2_joint", ["diffusion.document_mask=true", f"data.blend={prefix}"])
    data = replace(run.data, chat=True, sequence_length=256, split="50,50,0")
    return replace(run, data=data, vision=vision)


def test_a_run_reads_images_of_its_own_tokens_and_sizes_alone(mixed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(mixed)
    check_data_parts(str(mixed), manifest, run_on(mixed, VISION))
    parts = open_run_rows(run_on(mixed, VISION), tmp_path)
    sample: Sample = parts["train"][0]  # type: ignore[assignment]
    assert "images" in sample
    for wrong, said in (
        (None, "has 20 images, and the run has no vision section"),
        (replace(VISION, image_token_id=15), "was made with image_token_id 12.*vision.image_token_id=15"),
        (replace(VISION, patch_size=7), "was made with patch_size 14"),
        (replace(VISION, merge=1), "was made with merge 2"),
        (replace(VISION, longest_edge=280), "was made with longest_edge 1540"),
    ):
        with pytest.raises(UserError, match=said):
            check_data_parts(str(mixed), manifest, run_on(mixed, wrong))
        with pytest.raises(UserError, match=said):
            open_run_rows(run_on(mixed, wrong), tmp_path)


def test_text_goes_with_a_run_that_sees(tmp_path: Path) -> None:
    prefix = prepare(tmp_path, [asked(f"number {n}") for n in range(8)])
    check_data_parts(str(prefix), read_manifest(prefix), run_on(prefix, VISION))
    assert len(open_run_rows(run_on(prefix, VISION), tmp_path / "rows")["train"])

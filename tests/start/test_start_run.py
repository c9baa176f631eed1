"""The start checks that look at the data."""

from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.data.manifest import read_manifest, write_manifest
from nld_train.data.tokenizer import tokenizer_fingerprint
from nld_train.doctor.start_checks import check_run_data
from nld_train.errors import UserError
from tests.chat_files import conversation, write_chat_file


@pytest.fixture
def chat(prepared: Path, tmp_path: Path) -> Path:
    conversations = [conversation(9, prompt=3, seed=i) for i in range(3)]
    return write_chat_file(tmp_path / "chat", conversations, tokenizer_fingerprint(prepared / "tokenizer"))


def check(recipe_name: str, prepared: Path, *prefixes: Path, vocabulary: int = 400, mask: int = 100) -> None:
    blend = f"data.blend={','.join(map(str, prefixes))}"
    given = [blend, f"data.tokenizer={prepared}/tokenizer", f"model.vocab_size={vocabulary}"]
    check_run_data(recipe.load_recipe(recipe_name, [*given, f"diffusion.mask_token_id={mask}"]))


def test_files_of_the_runs_kind_pass(prepared: Path, chat: Path) -> None:
    check("tiny_sft", prepared, chat)
    check("tiny_stage2_joint", prepared, prepared / "data" / "a", prepared / "data" / "b")


@pytest.mark.parametrize("name", ["tiny_sft", "tiny_stage2_joint"])
def test_conversations_and_plain_text_are_not_mixed(name: str, prepared: Path, chat: Path) -> None:
    with pytest.raises(UserError, match="holds (conversations|plain text), .* has data.chat="):
        check(name, prepared, chat, prepared / "data" / "a")


def test_a_chat_file_without_its_supervision_is_refused(prepared: Path, chat: Path) -> None:
    Path(f"{chat}.supervised.bin").unlink()
    with pytest.raises(UserError, match="no file .*supervised.bin"):
        check("tiny_sft", prepared, chat)


def test_a_mask_that_is_text_is_refused_before_training(prepared: Path, chat: Path) -> None:
    for name, prefix in (("tiny_sft", chat), ("tiny_stage2_joint", prepared / "data" / "a")):
        with pytest.raises(
            UserError, match=r"diffusion.mask_token_id=300 is the text .* set diffusion.mask_token_id=100"
        ):
            check(name, prepared, prefix, mask=300)
    check("tiny_sft", prepared, chat, vocabulary=512, mask=400)  # without text


def test_chat_files_whose_answers_end_differently_are_refused_before_training(
    prepared: Path, chat: Path, tmp_path: Path
) -> None:
    """An export names one token at which servers stop."""
    other = write_chat_file(
        tmp_path / "other", [conversation(9, prompt=3, seed=0)] * 2, tokenizer_fingerprint(prepared / "tokenizer")
    )
    manifest = read_manifest(other)
    assert manifest.chat is not None
    write_manifest(other, replace(manifest, chat=replace(manifest.chat, end_of_turn_id=2)))
    with pytest.raises(UserError, match="answers end with different tokens: 11 in .*chat, 2 in .*other"):
        check("tiny_sft", prepared, chat, other)


def test_conversations_of_another_template_are_refused_before_training(prepared: Path, chat: Path) -> None:
    """An export brings the tokenizer's template along: servers would write other prompts than training has read."""
    manifest = read_manifest(chat)
    assert manifest.chat is not None
    write_manifest(chat, replace(manifest, chat=replace(manifest.chat, template_sha256="1" * 64)))
    with pytest.raises(UserError, match="was written with another chat template .* than .*chat_template.jinja"):
        check("tiny_sft", prepared, chat)

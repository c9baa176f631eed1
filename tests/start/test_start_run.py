"""The start checks that look at the data."""

from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.data.tokenizer import tokenizer_fingerprint
from nld_train.doctor.start_checks import check_run_data
from nld_train.errors import UserError
from tests.chat_files import conversation, write_chat_file


@pytest.fixture
def chat(prepared: Path, tmp_path: Path) -> Path:
    conversations = [conversation(9, prompt=3, seed=i) for i in range(3)]
    return write_chat_file(tmp_path / "chat", conversations, tokenizer_fingerprint(prepared / "tokenizer"))


def check(recipe_name: str, prepared: Path, *prefixes: Path) -> None:
    blend = f"data.blend={','.join(map(str, prefixes))}"
    check_run_data(
        recipe.load_recipe(recipe_name, [blend, f"data.tokenizer={prepared}/tokenizer", "model.vocab_size=400"])
    )


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

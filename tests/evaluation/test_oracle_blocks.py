"""Records of whole contexts: killed, divided and beside linear self-speculation."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.evaluation import oracle_blocks
from nld_train.evaluation.contexts import EvalContext
from nld_train.evaluation.oracle_blocks import (
    OracleSettings,
    check_oracle_room,
    linear_gains,
    measure_contexts,
    measure_together,
)
from nld_train.evaluation.record_file import RecordFile, merge_record_files
from nld_train.evaluation.results import records_path, shard_prompts, write_figures

SETTINGS = OracleSettings((4, 2), (0.5, 0.7), depth=1, budget=50, max_new_tokens=8, eos_token_ids=(1,))
IDENTITY = {
    "kind": "sol",
    "model": "small",
    "step": None,
    "max_new_tokens": 8,
    "depth": 1,
    "budget": 50,
    "blocks": [4, 2],
}
IDENTITY |= {"thresholds": [0.5, 0.7]}


@pytest.fixture
def contexts(ragged, monkeypatch) -> list[EvalContext]:
    """Contexts of two categories, measured three at a time."""
    monkeypatch.setattr(oracle_blocks, "CONTEXTS", 3)
    return [EvalContext(f"{number}/1", "ab"[number % 2], tuple(ids), None) for number, ids in enumerate(ragged[:8], 1)]


def measure(model, contexts, folder: Path, shard=None, advance=lambda units: None):
    """The figures, or of a shard the records alone."""
    records = RecordFile(records_path(folder, "sol", shard), IDENTITY)
    measure_contexts(model, contexts, SETTINGS, records, advance)
    return write_figures(folder, "sol") if shard is None else records.path


def test_a_killed_evaluation_goes_on_to_the_same_figures(small, contexts, tmp_path) -> None:
    work: list[int] = []
    whole = measure(small, contexts, tmp_path / "whole", advance=work.append)
    assert sum(work) == SETTINGS.units(len(contexts)), "the bar ends at its end"
    assert whole["blocks"][0]["ended"] and whole["blocks"][0]["overall"]["block_count"] >= 4
    lines = (tmp_path / "whole" / "sol.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * len(contexts)

    class Killed(Exception):
        """In the place of a signal."""

    def kill(units: int) -> None:
        work.append(units)
        if sum(work) > 0.7 * SETTINGS.units(len(contexts)):
            raise Killed

    work.clear()
    with pytest.raises(Killed):
        measure(small, contexts, tmp_path / "killed", advance=kill)
    path = tmp_path / "killed" / "sol.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    assert 1 < len(kept) < len(lines)
    path.write_text("".join(kept[:-1]) + kept[-1][:20])  # within a group, and within a line
    work.clear()
    assert measure(small, contexts, tmp_path / "killed", advance=work.append) == whole
    assert sum(work) == SETTINGS.units(len(contexts))
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)
    before = path.read_bytes()
    assert measure(small, contexts, tmp_path / "killed") == whole and path.read_bytes() == before


def test_merged_shards_give_the_figures_of_one_process(small, contexts, tmp_path) -> None:
    whole = measure(small, contexts, tmp_path / "whole")
    parts = [
        measure(small, shard_prompts(contexts, (number, 3)), tmp_path / "parts", (number, 3)) for number in (1, 2, 3)
    ]
    merge_record_files(parts, records_path(tmp_path / "parts", "sol"), overwrite=False, same=lambda name: True)
    assert write_figures(tmp_path / "parts", "sol") == whole


def test_linear_cycles_that_begin_within_the_new_tokens_count_whole(small, contexts) -> None:
    settings = OracleSettings((4,), (), 0, 1, max_new_tokens=8, eos_token_ids=())
    longer = 0
    gains = linear_gains(small, contexts, 4, settings)
    for context, gained in zip(contexts, gains, strict=True):
        decode = DecodeConfig(max_new_tokens=8, block_length=4, eos_token_id=())
        (cut,) = generate_self_speculation(small, [context.ids], decode)
        assert len(gained) == len(cut.accepted_lengths) and gained[:-1] == cut.accepted_lengths[:-1]
        longer += gained[-1] > cut.accepted_lengths[-1]
    assert longer > 0, "some last cycle is cut off where it is given no room"


def test_a_drafter_changes_linear_self_speculation_alone(make_model, contexts) -> None:
    """The oracle denoises as block diffusion does, without the drafter's adapter, even where it was left on."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["o_proj"], init_lora_weights=False)
    drafting = get_peft_model(make_model(6), config).model
    plain, adapted = (
        measure_together(model, contexts[:3], 4, SETTINGS, lambda units: None) for model in (make_model(6), drafting)
    )
    assert [record["blocks"] for record in plain] == [record["blocks"] for record in adapted]
    assert [record["linear"] for record in plain] != [record["linear"] for record in adapted]


def test_a_context_without_room_for_its_last_draft_is_refused(contexts) -> None:
    length = max(len(context.ids) for context in contexts)
    check_oracle_room(contexts, SETTINGS, length + 12)
    with pytest.raises(
        UserError, match=rf"of {length} tokens with --max-new-tokens 8; allowed: {length + 11} positions"
    ):
        check_oracle_room(contexts, SETTINGS, length + 11)

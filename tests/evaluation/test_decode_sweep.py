"""Decoding in many ways: the ranks of refused drafts against a slow look, and the records against the modes."""

from pathlib import Path

import pytest
import torch

from nld_train.data.tokenizer import load_tokenizer
from nld_train.decode.ar import generate_ar
from nld_train.decode.diffusion import generate_diffusion
from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.evaluation.contexts import EvalContext
from nld_train.evaluation.decode_figures import decode_figures, decode_table, kept_shares
from nld_train.evaluation.decode_sweep import DraftRanks, SweepPoint, SweepRun, check_sweep, sweep_points
from nld_train.evaluation.evaluated_model import EvaluatedModel
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from tests.decode.conftest import MASK

NEW, BLOCK = 12, 4


def slow_refusals(model, prompt: list[int], answer: list[int]) -> list[list[int]]:
    """Greedy self-speculation by its definition, with a cache of its own for every forward."""
    found, known = [], 1
    while known < len(answer):
        cache = KVCache(1)
        with torch.no_grad():
            extend_cache(model, torch.tensor([[*prompt, *answer[: known - 1]]]), cache)
            masks = torch.tensor([[answer[known - 1], *[MASK] * (BLOCK - 1)]])
            logits = noisy_logits(model, masks, cache, MASK)[0, 1:]
        right = answer[known : known + BLOCK - 1]
        place = 0
        while place < len(right) and int(logits[place].argmax()) == right[place]:
            place += 1
        if place < len(right):
            order = logits[place].argsort(descending=True).tolist()
            found.append([place + 1, order.index(right[place]) + 1])
        known += place + 1
    return found


def test_ranks_of_refused_drafts_are_those_of_a_slow_look(small, ragged) -> None:
    prompts = ragged[:30]
    settings = DecodeConfig(max_new_tokens=NEW, block_length=BLOCK)
    answers, ranks = generate_ar(small, prompts, settings), DraftRanks()
    drafted = generate_self_speculation(small, prompts, settings, None, None, ranks)
    seen = [[list(pair) for pair in ranks.refused(row, answer)] for row, answer in enumerate(drafted)]
    expected = [slow_refusals(small, answer.prompt, answer.ids) for answer in answers]
    assert seen == expected
    assert {rank for row in expected for _, rank in row} >= {2, 3} and any(
        place > 1 for row in expected for place, _ in row
    )


@pytest.fixture
def run(make_model, prepared: Path) -> SweepRun:
    tokenizer = load_tokenizer(prepared / "tokenizer")
    model = make_model(400, mask_token_id=100, eos_token_id=2)
    return SweepRun(EvaluatedModel("tiny", model, tokenizer), DecodeConfig(max_new_tokens=8), (), 2)


@pytest.fixture
def contexts() -> list[EvalContext]:
    ids = [(5, 9, 20), (7,), (30, 31, 32, 33)]
    return [EvalContext(f"{n}/1", "ab"[n % 2], given, None) for n, given in enumerate(ids)]


def test_records_are_what_the_modes_decode(run: SweepRun, contexts: list[EvalContext]) -> None:
    model, points = run.evaluated.model, sweep_points(["diffusion", "self-spec", "quadratic"], [4], [0.1, 0.9], False)
    records = [one for point in points for batch in run.records(point, contexts) for one in batch]
    assert len({one["key"] for one in records}) == len(points) * len(contexts)
    by_point = {point.name: [one for one in records if SweepPoint(**one["point"]) == point] for point in points}
    prompts = [context.ids for context in contexts]
    ar = [answer.ids for answer in generate_ar(model, prompts, run.decode)]
    for name in ("ar", "self-spec, block 4", "quadratic, block 4"):
        assert [one["ids"] for one in by_point[name]] == ar
        assert all(one["as_ar"] == len(one["ids"]) for one in by_point[name])
    for threshold in (0.1, 0.9):
        settings = DecodeConfig(max_new_tokens=8, block_length=4, threshold=threshold)
        found = by_point[f"diffusion, block 4, threshold {threshold}"]
        assert [one["ids"] for one in found] == [one.ids for one in generate_diffusion(model, prompts, settings)]
    slow = found[0]
    with torch.no_grad():
        hits = 0
        for place, token in enumerate(slow["ids"]):
            logits = model(torch.tensor([[*contexts[0].ids, *slow["ids"][:place]]]), use_causal_mask=True).logits
            hits += int(logits[0, -1].argmax()) == token
    assert slow["as_ar"] == hits < len(slow["ids"])


def test_figures_are_sums_over_the_records() -> None:
    def one(context: str, category: str, ids: list[int], **more) -> dict:
        given = {"point": vars(SweepPoint("ar")), "text": "x", "reference": None, "prefill": 1, "forwards": len(ids)}
        given |= {"accepted": [], "refused": None, "as_ar": len(ids), "seconds": 0.5}
        given |= {"key": f"{more.get('point', 'ar')}|{context}", "context": context, "category": category, "ids": ids}
        return given | more

    point = vars(SweepPoint("self-spec", 4))
    spec = {"point": point, "reference": " x\n"}
    records = [
        one("a", "p", [1, 2, 3, 4]),
        one("b", "q", [5, 6]),
        one("a", "p", [1, 2, 3, 4], forwards=3, accepted=[3], refused=[[1, 2], [2, 3]], **spec),
        one("b", "q", [5, 7], forwards=3, accepted=[1], refused=[[1, 9], [1, 2]], as_ar=1, **spec | {"text": "y"}),
    ]
    ar, found = decode_figures({"model": "m"}, records)["points"]
    assert ar["overall"]["tokens_per_forward"] == 1.0 and ar["exact"] is None and ar["overall"]["accuracy"] is None
    overall = found["overall"]
    assert overall["tokens_per_forward"] == 1.0 and overall["tokens_per_forward_without_prefill"] == 1.5
    assert overall["accepted_length"] == 2.0 and overall["kept"] == [0.5, 0.5]
    assert overall["agreement"] == 5 / 6 and overall["equal"] == 0.5 and found["exact"] is False
    assert overall["accuracy"] == 0.5 and overall["judged"] == 2 and overall["tokens_per_second"] == 6.0
    assert overall["refused"] == 4 and overall["right_was_choice"] == {"2": 0.5, "3": 0.25}
    assert found["categories"]["p"]["tokens_per_forward"] == 4 / 3 and found["categories"]["q"]["equal"] == 0.0
    assert "self-spec, block 4" in decode_table(decode_figures({}, records))


def test_kept_shares_count_rounds_that_went_further() -> None:
    assert kept_shares([1, 3, 2, 3]) == [0.75, 0.5]
    assert kept_shares([1, 1]) == kept_shares([]) == []


def test_blocks_must_fill_an_answer_in_diffusion_mode_alone() -> None:
    check_sweep(sweep_points(["self-spec"], [7], [0.9], False), 8)
    with pytest.raises(UserError, match="--max-new-tokens 8 with --block 7; .*; do: use 14"):
        check_sweep(sweep_points(["diffusion"], [7], [0.9], False), 8)


def test_an_adapter_is_evaluated_beside_the_base() -> None:
    names = [point.name for point in sweep_points(["ar", "self-spec"], [8, 16], [0.9], True)]
    expected = ["ar", "self-spec, block 8", "self-spec, block 16"]
    assert names == [*expected, "self-spec, block 8, adapter", "self-spec, block 16, adapter"]

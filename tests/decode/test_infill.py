"""Infilling against a transcription of its definition; what is seen of the text behind a gap, and what is not."""

from dataclasses import replace

import pytest
import torch

from nld_train.decode.infill import TextGap, infill_gaps, sight_text
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from tests.decode.slow_blocks import slow_row

BLOCK, LENGTH = 12, 7
SETTINGS = DecodeConfig(block_length=BLOCK, threshold=0.5, eos_token_id=())
CASES = {
    "threshold": {},
    "a token a forward": {"threshold": None},
    "budget": {"forwards_per_block": 3, "threshold": 0.9},
    "revision": {"revise": 2},
    "end of text": {"eos_token_id": (5,)},
    "revision, budget and end of text": {"eos_token_id": (5,), "revise": 1, "forwards_per_block": 4},
}


@pytest.fixture(scope="module")
def gaps(ragged) -> list[TextGap]:
    """Texts of many lengths around the gaps; two have nothing before them."""
    befores = [[], *ragged[:8], []]
    return [TextGap(before, after) for before, after in zip(befores, ragged[20:], strict=False)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_gap_is_filled_by_its_definition_in_a_batch_and_alone(small, gaps, changes, temperature):
    settings = replace(SETTINGS, temperature=temperature, **changes)
    assert len({len(gap.seen(LENGTH, BLOCK)) for gap in gaps}) > 2, "blocks of several lengths in one batch"
    together = infill_gaps(small, gaps, LENGTH, settings)
    for number, (gap, result) in enumerate(zip(gaps, together, strict=True)):
        row = slow_row(small, gap.before, settings, number).run_gap(list(gap.after[: BLOCK - LENGTH]), LENGTH)
        assert (result.prompt, result.ids, result.order) == (gap.before, row.tokens, row.order)
        assert result.nfe.total == row.forwards and result.nfe.prefill == (len(gap.before) > 0)
        assert result.nfe.verify_or_refresh == 0
        if temperature == 0:
            alone = infill_gaps(small, [gap], LENGTH, settings)[0]
            assert replace(alone, seconds=0) == replace(result, seconds=0)
    lengths = {len(result.ids) for result in together}
    assert (len(lengths) > 1) == bool(settings.eos_token_id) and max(lengths) <= LENGTH
    assert all(result.ids[-1] == 5 for result in together if len(result.ids) < LENGTH)


def test_nothing_before_any_gap(small, gaps):
    bare = [TextGap([], gap.after) for gap in gaps]
    for gap, result in zip(bare, infill_gaps(small, bare, LENGTH, SETTINGS), strict=True):
        row = slow_row(small, [], SETTINGS).run_gap(gap.seen(LENGTH, BLOCK), LENGTH)
        assert (result.ids, result.nfe.total, result.nfe.prefill) == (row.tokens, row.forwards, 0)


def heard_infill(model, gap: TextGap, **changes) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor]]:
    """The tokens of a gap, and the ids and the logits of every forward."""
    ids, logits = [], []

    def hear(module, given, named, output):
        ids.append(given[0].clone())
        logits.append(output.logits.clone())

    hook = model.register_forward_hook(hear, with_kwargs=True)
    result = infill_gaps(model, [gap], LENGTH, replace(SETTINGS, **changes))[0]
    hook.remove()
    return result.ids, ids, logits


def same_bits(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


BEFORE, AFTER = [4, 5, 0, 2], [1, 5, 2, 0, 4, 4, 0, 1, 2]


def test_what_is_seen_of_the_text_behind_changes_the_gap_and_what_is_not_changes_no_bit(small):
    tokens, _, logits = heard_infill(small, TextGap(BEFORE, AFTER))
    for place in range(len(AFTER)):
        for other in {0, 1, 2, 4, 5} - {AFTER[place]}:
            changed = [*AFTER[:place], other, *AFTER[place + 1 :]]
            new_tokens, _, new_logits = heard_infill(small, TextGap(BEFORE, changed))
            if place >= BLOCK - LENGTH:
                assert new_tokens == tokens and same_bits(new_logits, logits)
            else:
                first, new_first = logits[1][0, :LENGTH], new_logits[1][0, :LENGTH]
                assert (first != new_first).any(1).all(), "every place of the gap sees every seen token"
            assert torch.equal(new_logits[0], logits[0]), "what stands before the gap sees nothing behind it"
    made = [heard_infill(small, TextGap(BEFORE, [other, *AFTER[1:]]))[0] for other in (0, 1, 2, 4, 5)]
    assert len(set(map(tuple, made))) > 1, "no token behind the gap changed it"


@pytest.mark.parametrize("changes", [{}, {"revise": 3}, {"temperature": 1.0, "revise": 1}])
def test_the_given_tokens_stand_in_every_forward_as_they_were_given(small, gaps, changes):
    for gap in gaps:
        _, ids, _ = heard_infill(small, gap, **changes)
        if gap.before:
            assert ids.pop(0).tolist() == [gap.before], "read once, by the causal forward"
        seen = gap.after[: BLOCK - LENGTH]
        assert ids and all(block[0, LENGTH : LENGTH + len(seen)].tolist() == seen for block in ids)


def test_the_gap_ends_where_the_caller_says_and_is_heard_as_it_comes(small):
    full = infill_gaps(small, [TextGap(BEFORE, AFTER)], LENGTH, SETTINGS)[0].ids
    heard: list[int] = []
    ended = infill_gaps(
        small, [TextGap(BEFORE, AFTER)], LENGTH, SETTINGS, lambda row, new: heard.extend(new), lambda ids: len(ids) == 3
    )
    assert ended[0].ids == heard == full[:3] and len(full) == LENGTH


@pytest.mark.parametrize(
    ("gap", "length", "changes", "named"),
    [
        (TextGap(BEFORE, AFTER), 0, {}, "a gap of 0 tokens with block_length=12; allowed: 1 to 11"),
        (TextGap(BEFORE, AFTER), 12, {}, "a gap of 12 tokens with block_length=12; allowed: 1 to 11"),
        (TextGap(BEFORE, []), 4, {}, "gap 0 with nothing behind it"),
        (TextGap([4] * 117, AFTER), LENGTH, {}, "122 tokens with max_new_tokens=7; allowed: 128 positions"),
        (TextGap(BEFORE, [6]), LENGTH, {}, "token id 6"),
        (TextGap(BEFORE, AFTER), LENGTH, {"eos_token_id": (6,)}, "eos_token_id=6"),
        (TextGap(BEFORE, AFTER), LENGTH, {"max_thinking_tokens": 2, "end_think_token_id": 1}, "max_thinking_tokens=2"),
        (TextGap(BEFORE, AFTER), LENGTH, {"revise": 2, "forwards_per_block": 2}, "forwards_per_block=2 with revise=2"),
    ],
)
def test_a_gap_that_cannot_be_filled_is_refused_in_one_line(small, gap, length, changes, named):
    with pytest.raises(UserError, match=named) as caught:
        infill_gaps(small, [gap], length, replace(SETTINGS, **changes))
    assert "\n" not in str(caught.value)


def test_it_is_said_how_much_was_seen_and_when_a_block_is_longer_than_those_of_training():
    gap = TextGap([], [0] * 40)
    assert sight_text(gap, 4, 16, 16) == "the gap saw 12 of the 40 tokens behind it"
    assert sight_text(gap, 4, 17, 16) == (
        "the gap saw 13 of the 40 tokens behind it, in a block of 17: longer than the 16 of training, outside of what "
        "was trained"
    )
    assert sight_text(TextGap([], [0] * 3), 4, 32, 16) == "the gap saw 3 of the 3 tokens behind it"

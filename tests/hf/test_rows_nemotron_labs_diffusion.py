"""When a row ends, what is streamed, and what a request is refused for."""

import pytest

from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.rows_nemotron_labs_diffusion import (
    GenerationLimits,
    Generations,
    ThinkingBudget,
    check_generation_request,
    check_whole_blocks,
    thinking_budget,
)

EOS, END_THINK = 9, 8


def rows_with(budget: int | None = None, new: int = 6, streamer=None) -> Generations:
    thinking = None if budget is None else ThinkingBudget(budget, END_THINK)
    return Generations([[1, 2], [3]], GenerationLimits(new, (EOS,), thinking), streamer)


def test_a_row_ends_at_the_end_of_sequence_which_it_keeps():
    rows = rows_with()
    assert rows.extend(0, [5, EOS, 6]) == 2
    assert rows[0].tokens == [5, EOS] and rows.active == [1] and rows.lengths == [4, 1]


def test_a_row_ends_at_its_limit():
    rows = rows_with(new=3)
    assert rows.extend(1, [5, 5, 5, 5]) == 3
    assert rows[1].ended and rows[1].length == 4


def test_thinking_is_ended_by_force_and_what_was_made_for_another_token_is_dropped():
    rows = rows_with(budget=2)
    assert rows.extend(0, [5, 5, 5, 5]) == 3
    assert rows[0].tokens == [5, 5, END_THINK]
    assert rows.extend(0, [5, 5]) == 2, "only once"


def test_thinking_that_ended_in_time_is_left_alone():
    rows = rows_with(budget=2)
    rows.extend(0, [5, END_THINK, 5, 5])
    assert rows[0].tokens == [5, END_THINK, 5, 5]
    assert rows.forced_place(rows[0]) is None and rows.forced_place(rows[1]) == 2


def test_thinking_that_ends_on_the_last_token_of_the_budget_drops_nothing():
    rows = rows_with(budget=2)
    assert rows.extend(0, [5, 5, END_THINK, 5]) == 4


def test_the_streamer_gets_every_kept_token_once_and_in_order():
    heard: list[tuple[int, list[int]]] = []
    rows = rows_with(new=4, streamer=lambda row, tokens: heard.append((row, tokens)))
    rows.extend(1, [5, 6])
    rows.extend(0, [])
    rows.extend(1, [7, 7, 7])
    assert heard == [(1, [5, 6]), (1, [7, 7])]


def test_forwards_are_counted_for_the_rows_that_take_part_and_for_the_batch():
    rows = rows_with()
    rows.count("prefill", rows.active)
    rows.count("draft", [1])
    assert rows[0].forwards == {"prefill": 1} and rows[1].forwards.total() == rows.forwards.total() == 2


class Config:
    max_position_embeddings, vocab_size = 16, 10


@pytest.mark.parametrize(
    ("prompts", "new", "named"),
    [
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1] * 13], 4, "prompt 0 of 13 tokens with max_new_tokens=4; allowed: 16 positions"),
        ([[1, 10]], 4, "token id 10"),
        ([[1]], 0, "max_new_tokens=0"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(prompts, new, named):
    with pytest.raises(InputError, match=named) as caught:
        check_generation_request(Config, prompts, GenerationLimits(new, (), None))
    assert "\n" not in str(caught.value)


def test_new_tokens_must_be_whole_blocks():
    check_whole_blocks(64, 32)
    with pytest.raises(InputError, match="max_new_tokens=33 with block_length=32.*use 64"):
        check_whole_blocks(33, 32)
    with pytest.raises(InputError, match="block_length=0"):
        check_whole_blocks(33, 0)


def test_a_budget_needs_the_token_that_ends_thinking():
    assert thinking_budget(None, 7) is None
    assert thinking_budget(3, 7) == ThinkingBudget(3, 7)
    with pytest.raises(InputError, match="max_thinking_tokens=3 without end_think_token_id"):
        thinking_budget(3, None)

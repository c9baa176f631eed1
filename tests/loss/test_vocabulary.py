"""Logits cut over real gloo ranks against the same logits whole."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from nld_train.loss.vocabulary import (
    VocabularyShard,
    largest_token_ids,
    log_normalizer,
    logits_at,
    sample_token_ids,
    sum_over_ranks,
)

ROWS, VOCABULARY, RANKS = 37, 60, 3
WHOLE = VocabularyShard()


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, ids of every row, uniforms."""
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(ROWS, VOCABULARY, dtype=torch.float64, generator=generator)
    logits[:, 5] = -torch.inf
    ids = torch.randint(VOCABULARY, (ROWS, 8), generator=generator)
    return logits, ids, torch.rand(ROWS, dtype=torch.float64, generator=generator)


def everything(logits: torch.Tensor, cut: VocabularyShard) -> dict[str, torch.Tensor]:
    """What every function gives, and the gradient of one of them, on the columns of the cut."""
    _, ids, uniforms = given()
    logits = logits.clone().requires_grad_()
    found = logits_at(logits, ids, cut)
    found.clamp(min=-50).square().sum().backward()
    return {
        "largest": largest_token_ids(logits, 7, cut),
        "at": found.detach(),
        "gradient": logits.grad,
        "normalizer": log_normalizer(logits, cut),
        "drawn": sample_token_ids(logits, uniforms, cut),
    }


def one_rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    width = VOCABULARY // RANKS
    own = given()[0][:, rank * width : (rank + 1) * width]
    cut = VocabularyShard(rank * width, distributed.group.WORLD)
    torch.save(everything(own, cut), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_cut_vocabulary_gives_what_the_whole_one_gives(tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=RANKS)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    whole = everything(given()[0], WHOLE)
    gradient = whole.pop("gradient")
    assert torch.equal(torch.cat([each.pop("gradient") for each in ranks], 1), gradient)
    assert gradient.abs().sum() > 0
    for each in ranks:
        torch.testing.assert_close(each, whole, rtol=1e-12, atol=1e-12)


def test_largest_are_those_of_topk_and_at_most_the_vocabulary() -> None:
    logits, _, _ = given()
    assert torch.equal(largest_token_ids(logits, 7, WHOLE), logits.topk(7).indices)
    assert largest_token_ids(logits, 2 * VOCABULARY, WHOLE).shape == (ROWS, VOCABULARY)


def test_draws_follow_the_probabilities() -> None:
    """Over an even grid of uniform numbers, every token is drawn as often as its probability says."""
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125], dtype=torch.float64)
    grid = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    drawn = sample_token_ids(probabilities.log().expand(8000, -1), grid, WHOLE)
    assert torch.equal(drawn.bincount(minlength=5) / 8000, probabilities)


def test_the_ends_of_the_interval_draw_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert sample_token_ids(logits, ends, WHOLE).tolist() == [1, 2]


def test_a_sum_over_one_rank_is_the_tensor_itself() -> None:
    tensor = torch.ones(2)
    assert sum_over_ranks(tensor, WHOLE) is tensor

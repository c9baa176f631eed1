from itertools import product

import pytest

from nld_train.config import ParallelConfig
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B
from nld_train.plan.parameters import (
    matrix_parameters,
    model_parameters,
    norm_parameters,
    padded_vocab,
    rank_parameters,
)

CUTS = [ParallelConfig(tensor=t, pipeline=p, world_size=t * p) for t, p in product((1, 2, 4), (1, 2))]


@pytest.mark.parametrize(
    ("model", "total"), [(NLD_3B, 3_831_659_520), (NLD_8B, 8_489_553_920), (NLD_14B, 13_506_073_600)]
)
def test_totals_are_the_published_ones(model, total) -> None:
    assert model_parameters(model).total == total


def test_a_layer_has_the_weights_of_a_real_layer(layer) -> None:
    count = matrix_parameters(layer.model) + norm_parameters(layer.model)
    assert count == sum(weight.numel() for weight in layer.parameters()) == model_parameters(layer.model).layer


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("model", [NLD_3B, NLD_8B, NLD_14B])
def test_the_ranks_hold_the_model_and_the_norms_once_for_each_tensor_rank(model, cut) -> None:
    held = sum(cut.tensor * rank_parameters(model, cut, stage).total for stage in range(cut.pipeline))
    norms = (2 * model.layers + 1) * model.hidden
    assert held == model_parameters(model).total + (cut.tensor - 1) * norms


def test_the_embedding_is_on_the_first_stage_and_the_head_on_the_last() -> None:
    cut = ParallelConfig(pipeline=2, world_size=2)
    first, last = (rank_parameters(NLD_3B, cut, stage) for stage in (0, 1))
    assert (first.head, first.final_norm, last.embedding) == (0, 0, 0)
    assert first.embedding == last.head == 131_072 * 3072


def test_virtual_pipelining_moves_no_parameters() -> None:
    plain, chunked = (ParallelConfig(pipeline=2, virtual_pipeline=v, world_size=2) for v in (1, 5))
    assert rank_parameters(NLD_14B, plain, 0) == rank_parameters(NLD_14B, chunked, 0)


@pytest.mark.parametrize(
    ("vocab", "tensor", "padded"), [(131_072, 8, 131_072), (1000, 1, 1024), (1025, 4, 1536), (1, 2, 256)]
)
def test_the_vocabulary_is_padded_to_a_multiple_of_128_for_each_tensor_rank(vocab, tensor, padded) -> None:
    assert padded_vocab(vocab, tensor) == padded

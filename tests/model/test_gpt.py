"""The Megatron model against the network written out in plain torch, on one real rank."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.noise.corrupt import corrupt_row
from nld_train.plan import parameters
from nld_train.types import Batch, Row
from tests.distributed.ranks import on, small_run
from tests.model import reference_gpt
from tests.model.build import build

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]


def run_at(alpha: float, document_mask: bool = False) -> RunConfig:
    run = small_run("test", Path("nowhere"), alpha=alpha, init=None, parallel=on(1))
    return replace(run, diffusion=replace(run.diffusion, document_mask=document_mask))


def batch_at(run: RunConfig) -> Batch:
    generator = torch.Generator().manual_seed(1)
    length = run.data.sequence_length
    rows = []
    for index in range(2):
        tokens = torch.randint(101, run.model.vocab_size, (length + 1,), generator=generator)
        supervised = torch.rand(length + 1, generator=generator) < 0.8
        # One document ends amid a block, at another place in each row.
        documents = (torch.arange(length) >= 21 + 9 * index).long()
        rows.append(Row(index, tokens, supervised, documents))
    if not run.diffusion.dual:
        return collate_rows(rows, run.diffusion)
    return collate_rows([corrupt_row(row, run.diffusion, "train", 2) for row in rows], run.diffusion)


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_losses_equal_the_written_out_network(alpha: float, document_mask: bool) -> None:
    run = run_at(alpha, document_mask)
    model, batch = build(run), batch_at(run)
    layout = RowLayout(run.data.sequence_length, run.diffusion.block_size, run.diffusion.dual)
    expected = reference_gpt.logits(batch.input_ids, dict(model.named_parameters()), run.model, layout, batch.documents)
    assert (batch.documents is not None) == document_mask
    needed = expected.reshape(-1, run.model.vocab_size)[batch.head_positions]
    nll = torch.nn.functional.cross_entropy(needed, batch.head_targets, reduction="none")
    assert batch.ar_targets.numel() > 0
    assert (batch.diffusion_targets.numel() > 0) == (alpha > 0)
    torch.testing.assert_close(model(batch=batch).double(), nll, rtol=2e-5, atol=2e-5)


def test_stage_1_is_given_the_clean_half_alone() -> None:
    run = run_at(0.0)
    assert batch_at(run).input_ids.shape[1] == run.data.sequence_length
    assert build(run).config.seq_length == run.data.sequence_length


def test_parameters_are_those_of_the_plan() -> None:
    run = run_at(0.3)
    assert (
        sum(parameter.numel() for parameter in build(run).parameters()) == parameters.model_parameters(run.model).total
    )


def test_construction_fails_unless_every_layer_got_our_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    from nld_train.model import provider

    monkeypatch.setattr(provider, "DualStreamAttention", DotProductAttention)
    with pytest.raises(AssertionError, match="layer 0 attends with DotProductAttention"):
        build(run_at(0.3))


def test_head_rows_are_picked_from_the_right_row_and_place() -> None:
    from nld_train.model.position_head import select_positions

    hidden = torch.arange(3 * 2).view(3, 2, 1)  # [S, B, E]: value = place * 2 + row
    flat = torch.tensor([0 * 3 + 2, 1 * 3 + 0])  # row 0 place 2, row 1 place 0
    assert select_positions(hidden, flat).flatten().tolist() == [4, 1]


def test_query_scale_counts_true_positions_in_both_halves() -> None:
    from nld_train.model.core_attention import query_scale_factor

    factor = query_scale_factor(RowLayout(4, 2, dual=True), original_max_position=2, beta=0.1)
    by_hand = torch.tensor([1.0, 1.0, 1.0 + 0.1 * 0.6931472, 1.0 + 0.1 * 0.6931472])
    torch.testing.assert_close(factor, torch.cat([by_hand, by_hand]))


def test_long_rows_keep_the_published_frequencies() -> None:
    """YaRN from the configuration: Megatron's own table equals the formula for the published 3B shape."""
    from megatron.core.models.common.embeddings import YarnRotaryEmbedding

    from nld_train.model_sizes import NLD_3B

    rope = NLD_3B.rope
    table = YarnRotaryEmbedding(
        NLD_3B.head_dim,
        rotary_base=rope.theta,
        scaling_factor=rope.factor,
        original_max_position_embeddings=rope.original_max_position,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        mscale=rope.mscale,
        mscale_all_dim=rope.mscale_all_dim,
    )
    angles, factor = table(3)
    expected = 2 * reference_gpt.yarn_frequencies(rope, NLD_3B.head_dim).float()
    assert factor == 1.0
    torch.testing.assert_close(angles[2, 0, 0, : NLD_3B.head_dim // 2], expected, rtol=1e-6, atol=0)


def test_bf16_is_a_setting_of_the_run() -> None:
    from nld_train.model.provider import model_provider

    run = run_at(0.3)
    assert model_provider(run).params_dtype is torch.float32
    assert model_provider(replace(run, train=replace(run.train, precision="bf16"))).params_dtype is torch.bfloat16

"""The mask that "te+mod" writes into cuDNN's graph: who it hides, and that cuDNN takes it. What runs needs a GPU."""

import pytest
import torch
from torch import Tensor

from nld_train.attention.fused import score_mod
from nld_train.attention.sdpa import QueryChunk
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between
from tests.attention.cudnn_graph import Graph, counted
from tests.attention.stand_in import TorchGraph

CPU = torch.device("cpu")
LAYOUTS = [
    RowLayout(64, 4, True),
    RowLayout(45, 7, True),
    RowLayout(5, 8, True),
    RowLayout(45, 2, True, noisy_causal=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_it_hides_is_what_is_not_visible(layout: RowLayout) -> None:
    for shard in (WHOLE, ContextShard(2, 1)) if layout.length % (4 * layout.block_size) == 0 else (WHOLE,):
        spec = MaskSpec(layout, shard)
        for part in score_mod.noisy_chunks(spec):
            score = torch.ones(2, 3, part.queries[1] - part.queries[0], part.noisy[1] - part.noisy[0] + part.clean)
            hidden = score_mod.hide_unseen_scores(TorchGraph(), score, score_mod.interval_tensors(spec, part, CPU))
            assert torch.equal(hidden.as_subclass(Tensor) == 1, visible(spec, part).expand(score.shape))


def visible(spec: MaskSpec, part: QueryChunk) -> Tensor:
    layout, shard = spec.layout, spec.shard
    noisy = shard.keys(layout, packed=False)[slice(*part.noisy)]
    clean = torch.arange(layout.clean_start, layout.clean_start + part.clean)
    return visible_between(layout, shard.queries(layout)[slice(*part.queries)], torch.cat([noisy, clean]))


def test_a_hidden_score_has_no_weight() -> None:
    assert torch.tensor([score_mod.HIDDEN_SCORE, -1e4]).softmax(0).tolist() == [0, 1]


SPEC = MaskSpec(RowLayout(512, 32, True))
PART = score_mod.noisy_chunks(SPEC)[3]


def built(backward: bool, **changed: Tensor) -> list[int]:
    """The graph of a chunk, taken by cuDNN; how often it asked for the mask."""
    graph = Graph(1, PART.queries[1] - PART.queries[0], PART.noisy[1] - PART.noisy[0] + PART.clean)
    mask = score_mod.interval_tensors(SPEC, PART, CPU) | changed
    modify, calls = counted(score_mod.hide_unseen_scores, {name: graph.like(x) for name, x in mask.items()})
    graph.build(backward, use_causal_mask=False, score_mod=modify)
    return calls


@pytest.mark.parametrize("backward", [False, True])
def test_cudnn_takes_its_graph(backward: bool) -> None:
    """Shapes, types and operations; which engine would run it is asked on a GPU."""
    assert built(backward)


def test_cudnn_refuses_a_graph_that_is_wrong() -> None:
    """So that taking it says something."""
    with pytest.raises(ValueError, match="mismatch"):
        built(False, first=torch.zeros(1, 1, 1, 7).int())

"""The noisy half by Transformer Engine's score_mod: cuDNN's attention graph with a mask of our own in it.

cuDNN skips no tile under such a mask, so the half is divided into the chunks of sdpa.py, each over its own noisy keys
and the clean keys up to its end. Every chunk is a whole softmax, so nothing has to be merged.

This is an experimental interface of Transformer Engine 2.20.2. The tests have cuDNN build the graph, on the CPU; it has
not run on a GPU yet.
"""

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nld_train.attention.sdpa import QueryChunk, query_chunks, visible_in_chunk
from nld_train.dual_stream.mask_spec import MaskSpec

HIDDEN_SCORE = -1e30  # a score whose weight is 0 in float32, and finite


def noisy_chunks(spec: MaskSpec) -> list[QueryChunk]:
    """The rank's noisy queries in chunks."""
    return [chunk for chunk in query_chunks(spec) if chunk.noisy[1]]


@lru_cache(maxsize=64)
def interval_tensors(spec: MaskSpec, chunk: QueryChunk, device: torch.device) -> dict[str, Tensor]:
    """What `hide_unseen_scores` reads: of each key, the "first" and the "last" query of the chunk that sees it, both
    [1, 1, 1, keys] int32, and the "hidden" score [1, 1, 1, 1] float32.

    The queries that see a key are neighbours: for a noisy key its own block, for a clean key all later blocks. A key
    that nobody sees has first > last.
    """
    with torch.inference_mode(False):
        table = visible_in_chunk(spec, chunk, device)
        queries = torch.arange(len(table), device=device, dtype=torch.int32)[:, None]
        first = torch.where(table, queries, len(table)).amin(0)
        last = torch.where(table, queries, -1).amax(0)
        assert torch.equal((last - first + 1).clamp(min=0), table.sum(0)), f"{spec} {chunk}: not one interval a key"
        hidden = torch.full((1, 1, 1, 1), HIDDEN_SCORE, device=device)
    return {"first": first.int()[None, None, None], "last": last.int()[None, None, None], "hidden": hidden}


def hide_unseen_scores(graph: Any, score: Any, tensors: dict[str, Any]) -> Any:
    """A score_mod: the score [B, H, Q, K] of query q is kept where first <= q <= last of the key, hidden elsewhere.

    It is a function of the module, without a closure, because Transformer Engine keeps its graphs by the function's
    name. The backward needs no function of its own, because hidden pairs have weight 0.
    """
    data_type = importlib.import_module("cudnn").data_type
    query = graph.gen_index(input=score, axis=2)
    query.set_data_type(data_type.INT32)
    after = graph.cmp_ge(input=query, comparison=tensors["first"], compute_data_type=data_type.BOOLEAN)
    before = graph.cmp_le(input=query, comparison=tensors["last"], compute_data_type=data_type.BOOLEAN)
    both = graph.logical_and(a=after, b=before, compute_data_type=data_type.BOOLEAN)
    for decision in (after, before, both):
        decision.set_data_type(data_type.BOOLEAN)
    return graph.binary_select(input0=score, input1=tensors["hidden"], mask=both)

"""Dense attention, written to be read: the oracle that every fast path must equal."""

import torch
from torch import Tensor

from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between


def attend_dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T, over visible keys) v, each key/value head shared by H/G consecutive query heads.

    query [B, H, Q, D]; key, value [B, G, K, D]; visible [Q, K] or [B, Q, K] bool, every query sees one key or more.
    float64 stays float64; anything less is computed in float32. Returns: [B, H, Q, D] in the query's dtype.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    key, value = (part.to(wide).repeat_interleave(group, dim=1) for part in (key, value))
    scores = query.to(wide) @ key.transpose(-1, -2) * scale
    mask = visible if visible.dim() == 2 else visible[:, None]
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).to(query.dtype)


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: RowLayout,
    scale: float,
    documents: Tensor | None = None,
    cut: ContextShard = WHOLE,
) -> Tensor:
    """`attend` with the signature of the fast paths (attention/choose.py); `documents` [B, L] int64, or None."""
    queries, keys = cut.queries(layout, query.device), cut.keys(layout, documents is not None, query.device)
    documents = None if documents is None else documents.to(query.device)
    return attend_dense(query, key, value, visible_between(layout, queries, keys, documents), scale)

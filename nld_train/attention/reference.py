"""Dense attention, written to be read: the oracle that every fast path must equal."""

import torch
from torch import Tensor

from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.visibility import visible_between


def attend_dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T over the visible keys) v, where H/G consecutive query heads share a key/value head.

    query [B, H, Q, D]; key, value [B, G, K, D]; visible [Q, K] or [B, Q, K] bool, where every query sees a key.
    float64 stays float64; anything less is computed in float32. Returns: [B, H, Q, D] in the query's dtype.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    key, value = (part.to(wide).repeat_interleave(group, dim=1) for part in (key, value))
    scores = query.to(wide) @ key.transpose(-1, -2) * scale
    mask = visible if visible.dim() == 2 else visible[:, None]
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).to(query.dtype)


def attend_reference(query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
    """`attend_dense` by the visibility of `spec`, with the signature of every backend.

    query [B, H, S/c, D]; key, value [B, G, K, D]. Returns: [B, H, S/c, D].
    """
    layout, shard, device = spec.layout, spec.shard, query.device
    queries, keys = shard.queries(layout, device), shard.keys(layout, spec.packed, device)
    return attend_dense(query, key, value, visible_between(layout, queries, keys, *spec.places_on(device)), scale)

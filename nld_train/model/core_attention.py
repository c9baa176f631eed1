"""Megatron's core_attention, with our visibility and our backends; Megatron's projections stand around it."""

import math

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nld_train.attention.backends import BackendRequest, choose_backend
from nld_train.attention.context_parallel import gather_keys_and_values
from nld_train.dual_stream.context_shard import ContextShard
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions
from nld_train.model.provider_config import DualStreamConfig


def query_scale_factor(
    layout: RowLayout,
    original_max_position: int,
    beta: float,
    documents: Tensor | None = None,
    clean_only: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Llama-4 style factor of each query, 1 + beta * ln(1 + floor(position / original_max_position)).

    Positions are the true ones, 0..L-1 in both halves. Returns: [S], or [B, S] with documents [B, L], and clean_only
    [B, L] beside images (then on their device); float32.
    """
    positions = rotary_positions(layout, documents, clean_only, device)
    wraps = torch.div(positions, original_max_position, rounding_mode="floor")
    return 1.0 + beta * torch.log1p(wraps.float())


def join_row_places(documents: Tensor | None, clean_only: Tensor | None) -> Tensor | None:
    """The one tensor that tells every layer about the rows: documents [B, L], beside images [2, B, L] with clean_only;
    None where nothing is packed."""
    if documents is None or clean_only is None:
        return documents
    return torch.stack([documents, clean_only.long()])


def split_row_places(places: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The opposite of `join_row_places`."""
    if places is None or places.dim() == 2:
        return places, None
    return places[0], places[1].bool()


# documents -> {(layout, shard): the spec of those rows}, for as long as the batch lives
_SPECS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class DualStreamAttention(MegatronModule):
    """Attention over [noisy | clean], or the clean half alone, for one tensor-parallel rank's heads and one
    context-parallel rank's shard of the row.

    It has Megatron's core-attention interface, where `attention_mask` carries what `join_row_places` makes (on the
    host, where nothing waits for it): this is the one tensor that Megatron passes down to here through activation
    recomputation.
    """

    def __init__(
        self,
        config: DualStreamConfig,
        *,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection,
        **_: object,  # what else Megatron tells every core attention: layer number, mask type, communication
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self", f"attention_type {attention_type!r}: only self-attention is dual-stream"
        assert not (attention_dropout or config.attention_dropout), "attention dropout is not part of this objective"
        self.layout = config.layout
        self.context_group = pg_collection.cp
        self.shard = ContextShard(self.context_group.size(), self.context_group.rank())
        self.scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.scales_queries = config.layout.length > config.yarn_original_max_position_embeddings

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> Tensor:
        """query [S/c, B, H, D] after rotary; key, value [S/c, B, G, D]. Returns: [S/c, B, H * D]."""
        # 1. The mask of these rows, once for all that follows.
        spec = self._mask_spec(attention_mask)
        length, rows = query.shape[:2]
        assert length == spec.query_count, f"{length} positions of {self.layout} on {self.shard}"
        # 2. The query scale, and the keys and values of other context ranks.
        if self.scales_queries:
            query = self._scaled(query, attention_mask)
        if self.shard.ranks > 1:
            key, value = gather_keys_and_values(key, value, spec, self.context_group)
        # 3. Attention, rows first.
        request = BackendRequest(
            self.config.attention_name,
            query.device.type,
            query.dtype,
            query.shape[-1],
            self.training,
            packed=spec.packed,
            images=spec.clean_only is not None,
            context_ranks=self.shard.ranks,
        )
        attend = choose_backend(request)
        context = attend(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)), spec, self.scale)
        return context.permute(2, 0, 1, 3).reshape(length, rows, -1)

    def _mask_spec(self, places: Tensor | None) -> MaskSpec:
        """The spec of rows with these places. All layers of a forward are given the same tensor, so that the first
        layer reads it and the others find what it read."""
        if places is None:
            return MaskSpec(self.layout, self.shard)
        known = _SPECS.setdefault(places, {})
        key = (self.layout, self.shard)
        if key not in known:
            documents, clean_only = split_row_places(places)
            known[key] = MaskSpec.from_documents(self.layout, documents, self.shard, clean_only)
        return known[key]

    def _scaled(self, query: Tensor, places: Tensor | None) -> Tensor:
        """query [S/c, B, H, D] times its factor; places as `join_row_places` makes them."""
        on_device = None if places is None else places.to(query.device, non_blocking=True)
        factor = query_scale_factor(
            self.layout,
            self.config.yarn_original_max_position_embeddings,
            self.config.query_scale_beta,
            *split_row_places(on_device),
            query.device,
        )
        factor = factor[..., self.shard.queries(self.layout, factor.device)]
        by_position = factor[:, None] if places is None else factor.transpose(0, 1)
        return query * by_position[..., None, None].to(query)

"""The dual-stream model with a vision tower in front: features of images stand where their cells' embeddings would."""

from typing import Any

import torch
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from torch import Tensor

from nld_train.model.gpt import DualStreamGPTModel
from nld_train.model.position_head import sequence_first_index
from nld_train.model.provider_config import DualStreamConfig
from nld_train.model.vision_tower import build_tower, image_features, sized_features
from nld_train.types import Batch, HeadRequest


class DualStreamVisionModel(DualStreamGPTModel):
    """The text model, whose first pipeline stage holds the tower and the projector too, whole on every tensor rank.

    In checkpoints they are `vision_tower.*` and `multi_modal_projector.*` beside the names of the text model.
    """

    def __init__(self, config: DualStreamConfig, **kwargs: Any) -> None:
        assert config.vision is not None, "a text model has no tower"
        # The features are put into whole embeddings: only then has every tensor rank the gradient of all of them.
        super().__init__(config, scatter_embedding_sequence_parallel=False, **kwargs)
        if self.pre_process:
            recompute = config.vision.recompute or config.recompute_granularity == "full"
            self.vision_tower, self.multi_modal_projector = build_tower(
                config.vision, config.hidden_size, config.layernorm_epsilon, recompute, config.params_dtype
            )

    def _decoder_input(self, batch: Batch | HeadRequest) -> Tensor | None:
        """Embeddings [S, B, E] with the features of the batch's images in them; under sequence parallelism this tensor
        rank's shard of S. None behind the first pipeline stage."""
        if not self.pre_process:
            return None
        embeddings = put_features(self.embedding(batch.input_ids, None), *self._features(batch))
        if self.config.sequence_parallel:
            embeddings = scatter_to_sequence_parallel_region(embeddings, group=self.pg_collection.tp)
        return embeddings

    def _features(self, batch: Batch | HeadRequest) -> tuple[Tensor, Tensor]:
        """Features [F, E] of the cells of the batch's images, and where they belong, flat positions [F].

        Without an image the tower sees a blank one, of which nothing is used. So on every rank it takes part in every
        micro-batch, its parameters get zero gradients, and data ranks with and without images communicate in step.
        """
        if batch.images is not None:
            features = image_features(self.vision_tower, self.multi_modal_projector, batch.images)
            cells = batch.images.positions.numel()
            assert len(features) == cells, f"{len(features)} cells of images for {cells} positions"
            return features, batch.images.positions
        # Its size is known without a tensor: a rehearsal on fake tensors can read none.
        ids, cell = batch.input_ids, self.config.vision.cell
        blank = torch.zeros(1, 3, cell, cell, device=ids.device)
        features = sized_features(self.vision_tower, self.multi_modal_projector, blank, [(cell, cell)])
        return features[:0], ids.new_empty(0)


def put_features(embeddings: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """embeddings [S, B, E] with features [F, E] at flat positions [F], row * S + position. Returns: [S, B, E]."""
    length, rows, width = embeddings.shape
    index = sequence_first_index(positions, length, rows)
    flat = embeddings.reshape(length * rows, width)
    return flat.index_copy(0, index, features.to(flat.dtype)).view(length, rows, width)

"""Parameter counts: of the whole network, and of one GPU under tensor and pipeline parallelism."""

import math
from dataclasses import dataclass

from nld_train.config import ModelConfig, ParallelConfig
from nld_train.objectives.contract import LoraSettings

VOCAB_MULTIPLE = 128  # Megatron pads the vocabulary to a multiple of this, times the tensor ranks


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters. The head is a matrix of its own: it is never tied to the embedding."""

    embedding: int
    layer: int  # one layer
    layers: int  # how many of them
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return self.embedding + self.layer * self.layers + self.final_norm + self.head


def matrix_parameters(model: ModelConfig) -> int:
    """Weights of one layer's linear maps: query, key, value and output; gate, up and down. There are no biases."""
    attention = model.hidden * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    return attention + 3 * model.hidden * model.ffn


def norm_parameters(model: ModelConfig) -> int:
    """Weights of one layer's two RMSNorms."""
    return 2 * model.hidden


def model_parameters(model: ModelConfig) -> ParameterCounts:
    """Parameters of the network as it is published: its vocabulary is not padded."""
    table = model.vocab_size * model.hidden
    layer = matrix_parameters(model) + norm_parameters(model)
    return ParameterCounts(table, layer, model.layers, model.hidden, table)


def adapter_parameters(model: ModelConfig, lora: LoraSettings) -> int:
    """Weights of a LoRA on o_proj: its A [r, H * D] and B [E, r] of every layer."""
    return model.layers * lora.rank * (model.heads * model.head_dim + model.hidden)


def padded_vocab(vocab_size: int, tensor: int) -> int:
    """The vocabulary as Megatron allocates it, so that every tensor rank holds an equal, aligned part."""
    multiple = VOCAB_MULTIPLE * tensor
    return math.ceil(vocab_size / multiple) * multiple


def rank_parameters(model: ModelConfig, parallel: ParallelConfig, stage: int) -> ParameterCounts:
    """Parameters that a GPU of pipeline stage `stage` (0 .. pipeline - 1) holds.

    Matrices are sharded over the tensor ranks; norms are whole on each of them. The embedding is on the first stage,
    the final norm and the head are on the last one. Virtual pipelining hands out a stage's layers in several chunks,
    and does not change their number. Context parallelism shards no parameters.
    """
    assert 0 <= stage < parallel.pipeline, f"stage {stage} of {parallel.pipeline}"
    last = stage == parallel.pipeline - 1
    table = padded_vocab(model.vocab_size, parallel.tensor) // parallel.tensor * model.hidden
    return ParameterCounts(
        embedding=table if stage == 0 else 0,
        layer=matrix_parameters(model) // parallel.tensor + norm_parameters(model),
        layers=model.layers // parallel.pipeline,
        final_norm=model.hidden if last else 0,
        head=table if last else 0,
    )

"""Bytes on one GPU, by part, and on disk, derived from what a layer computes. GB are 1e9 bytes.

The plan assumes Megatron's mixed precision (bf16 weights, fp32 main gradients and optimizer states; in fp32 everything
is fp32 and the weights are their own master copy), Transformer Engine layers with fused RMSNorm + linear, fused SwiGLU
and attention that never makes a table of pairs, no dropout and no biases. With FP8 the layers keep FP8 copies of their
weights beside them, and the inputs of their linear maps in FP8.

It leaves out the CUDA context, NCCL's buffers, allocator fragmentation, kernel workspaces, rotary tables, block masks,
the pipeline's send and receive buffers, and gradient buckets in flight. CAPACITY leaves room for them.
"""

import math
from dataclasses import dataclass

from nld_train.config import ParallelConfig, RunConfig
from nld_train.fp8_recipes import WEIGHT_COPIES
from nld_train.objectives.choose import objective_of
from nld_train.objectives.contract import LoraSettings
from nld_train.plan.parameters import (
    adapter_parameters,
    matrix_parameters,
    model_parameters,
    padded_vocab,
    rank_parameters,
)
from nld_train.plan.row_counts import micro_batches, row_positions
from nld_train.plan.sampler_plan import sampler_activation_bytes, sampler_parameters, sampler_section
from nld_train.plan.vision_plan import (
    stage_image_bytes,
    stage_parameters,
    vision_backward_bytes,
    vision_parameters,
)
from nld_train.row_arithmetic import chunk_width

CAPACITY = 80e9  # bytes to plan with; an "80 GB" H100 has 85e9, and what is left out above must live in the rest
FP32 = 4  # bytes
MOMENTS = 2  # that Adam keeps of each parameter
LOGIT_CHUNKS = 4  # fp32 chunks that are alive at once in the LM head's backward pass


@dataclass(frozen=True)
class StageMemory:
    """Bytes on a GPU of one pipeline stage."""

    stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept from forward to backward, all micro-batches in flight
    layer_backward: int  # while one layer runs its backward pass
    head: int  # while the LM head and the loss run; 0 where the stage has no head
    images: int = 0  # kept from forward to backward by the tower and the projector, all micro-batches in flight
    image_backward: int = 0  # while one layer of the tower runs its backward pass, which is behind all other layers'

    @property
    def transient(self) -> int:
        """The head has finished before the first layer starts its backward pass, and the layers before the tower: only
        the largest of them counts."""
        return max(self.layer_backward, self.head, self.image_backward)

    @property
    def total(self) -> int:
        """Bytes at the peak of a step."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.images + self.transient

    @property
    def fits(self) -> bool:
        """Whether the peak stays within CAPACITY."""
        return self.total <= CAPACITY


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of one checkpoint on disk."""

    weights: int
    optimizer: int

    @property
    def total(self) -> int:
        """Bytes of both parts."""
        return self.weights + self.optimizer


def worst_stage(run: RunConfig) -> StageMemory:
    """Memory of the pipeline stage that needs most."""
    if run.sampler is not None:
        return sampler_memory(run)
    return max((stage_memory(run, stage) for stage in range(run.parallel.pipeline)), key=lambda each: each.total)


def stage_memory(run: RunConfig, stage: int) -> StageMemory:
    """Memory of a GPU of pipeline stage `stage`."""
    parameters, trained = stage_parameters(run, stage)
    lora = objective_of(run).adapter
    adapter = 0 if lora is None else adapter_on_rank(run, lora)
    trained = trained if lora is None else adapter
    return StageMemory(
        stage=stage,
        weights=(parameters + adapter) * element_bytes(run) + fp8_weight_bytes(run, stage),
        gradients=trained * FP32,
        optimizer=math.ceil(trained * optimizer_bytes(run) / optimizer_shards(run.parallel)),
        activations=math.ceil(layers_in_flight(run, stage) * layer_activation_bytes(run)),
        layer_backward=layer_backward_bytes(run),
        head=head_bytes(run) if stage == run.parallel.pipeline - 1 else 0,
        images=stage_image_bytes(run, stage, micro_batches(run)),
        image_backward=vision_backward_bytes(run) if stage == 0 else 0,
    )


def sampler_memory(run: RunConfig) -> StageMemory:
    """Memory of a GPU that trains the sampler's network whole; the model is not there."""
    count = trained_parameters(run)
    return StageMemory(
        stage=0,
        weights=count * element_bytes(run),
        gradients=count * FP32,
        optimizer=math.ceil(count * optimizer_bytes(run) / optimizer_shards(run.parallel)),
        activations=sampler_activation_bytes(run),
        layer_backward=sampler_activation_bytes(run) // sampler_section(run).layers,
        head=0,
    )


def fp8_weight_bytes(run: RunConfig, stage: int) -> int:
    """Bytes of the FP8 copies of the layers' weights on a GPU of pipeline stage `stage`. Scales are left out, and
    so is that the tensorwise recipe keeps two layers in bf16."""
    if run.train.fp8 == "none":
        return 0
    part = rank_parameters(run.model, run.parallel, stage)
    return part.layers * matrix_parameters(run.model) * WEIGHT_COPIES // run.parallel.tensor


def fp8_saving(run: RunConfig) -> float:
    """Bytes per position that FP8 spares a layer: it keeps the inputs of its linear maps in one byte in place of two.

    They are the outputs of both RMSNorms and the product of SwiGLU. The input of the output map is attention's own
    output, which attention keeps in bf16 all the same: of it there is one byte more.
    """
    if run.train.fp8 == "none":
        return 0.0
    return 2 * stream_elements(run) + (run.model.ffn - run.model.heads * run.model.head_dim) / run.parallel.tensor


def adapter_on_rank(run: RunConfig, lora: LoraSettings) -> int:
    """Parameters of an adapter on one GPU: A is sharded over the tensor ranks by its inputs, B by its outputs."""
    return adapter_parameters(run.model, lora) // run.parallel.tensor


def element_bytes(run: RunConfig) -> int:
    """Bytes of a weight or an activation."""
    return 2 if run.train.precision == "bf16" else FP32


def optimizer_bytes(run: RunConfig) -> int:
    """Bytes of optimizer state per parameter: Adam's moments, and an fp32 master copy unless the weights are fp32."""
    return FP32 * (MOMENTS + (1 if run.train.precision == "bf16" else 0))


def optimizer_shards(parallel: ParallelConfig) -> int:
    """Over how many ranks the distributed optimizer spreads its state: over all that hold the same parameters."""
    return parallel.data * parallel.context if parallel.distributed_optimizer else 1


def rank_positions(run: RunConfig) -> int:
    """Positions of a micro-batch on one rank: context parallelism shards the row."""
    return run.train.micro_batch * row_positions(run) // run.parallel.context


def stream_elements(run: RunConfig) -> float:
    """Elements per position of a [S, B, E] tensor between tensor-parallel regions; sequence parallelism shards it."""
    return run.model.hidden / (run.parallel.tensor if run.parallel.sequence else 1)


def layer_elements(run: RunConfig, gathered: bool) -> float:
    """Elements per position that one layer keeps for its backward pass (F is the hidden size of the SwiGLU).

    - It keeps 4 streams of E: the inputs of both RMSNorms (the residual stream) and their outputs (the inputs of the
      query-key-value and gate-up maps, for their weight gradients).
    - Attention, sharded over tensor ranks, keeps the whole output of the query-key-value map, (H + 2G) D, because its
      value is a view of it; the query and the key after rotary, (H + G) D; and its own output, H D, which the output
      map keeps as the same tensor. Where keys and values are `gathered` from other ranks, the gathered ones are kept
      instead, and of the rank's own only the query and the output remain.
    - SwiGLU, sharded over tensor ranks, keeps gate and up, 2F, and their product, F, the input of the down map.

    Maps that are not trained keep no inputs: of a frozen network the two outputs of the RMSNorms and the product are
    left out. Its adapter keeps its own input, the noisy half of the attention's output in a tensor of H D.
    """
    model = run.model
    own = 2 * model.heads if gathered else 3 * model.heads + 3 * model.kv_heads
    streams, products = 4, 3 * model.ffn
    if objective_of(run).adapter is not None:
        streams, products = 2, 2 * model.ffn + model.heads * model.head_dim
    return streams * stream_elements(run) + (model.head_dim * own + products) / run.parallel.tensor


def stored_activation_bytes(run: RunConfig, recompute_attention: bool) -> int:
    """Bytes that one layer keeps of one micro-batch: `layer_elements`, and the fp32 log-sum-exp of each query head.

    Recomputing fused attention saves the log-sum-exp alone, because query, key, value and output are needed all the
    same. Under context parallelism it also gathers again, and keeps the rank's own keys and values in place of those
    of all ranks.
    """
    gathered = run.parallel.context > 1 and not recompute_attention
    statistics = 0.0 if recompute_attention else FP32 * run.model.heads / run.parallel.tensor
    own = rank_positions(run) * (element_bytes(run) * layer_elements(run, gathered) - fp8_saving(run) + statistics)
    return math.ceil(own + (gathered_keys(run) if gathered else 0.0))


def gathered_keys(run: RunConfig) -> float:
    """Bytes of the keys and values that attention is given under context parallelism, 2 G D a position.

    They are those of all clean tokens, and of the rank's own noisy tokens; where packed documents are kept apart, of
    the noisy tokens of every rank.
    """
    length, parallel = run.data.sequence_length, run.parallel
    noisy = length if run.diffusion.document_mask else length // parallel.context
    keys = length + (noisy if run.diffusion.dual else 0)
    return (
        run.train.micro_batch
        * keys
        * 2
        * run.model.kv_heads
        * run.model.head_dim
        * element_bytes(run)
        / parallel.tensor
    )


def layer_activation_bytes(run: RunConfig) -> int:
    """Bytes that one layer keeps of one micro-batch under parallel.recompute; "full" keeps the layer's input alone."""
    if run.parallel.recompute == "full":
        return math.ceil(rank_positions(run) * element_bytes(run) * stream_elements(run))
    return stored_activation_bytes(run, recompute_attention=run.parallel.recompute == "selective")


def layers_in_flight(run: RunConfig, stage: int) -> float:
    """How many layers' activations a stage holds at its peak, counted over micro-batches.

    Without virtual stages (1F1B) stage s of P has started P - s micro-batches before its first backward pass. With V
    chunks a stage (interleaved 1F1B) it has started 2 (P - s - 1) + (V - 1) P + 1 chunks. Never more than a step has.
    """
    parallel = run.parallel
    chunks = parallel.virtual_pipeline
    started = parallel.pipeline - stage
    if chunks > 1:
        started = 2 * (parallel.pipeline - stage - 1) + (chunks - 1) * parallel.pipeline + 1
    return min(started, micro_batches(run) * chunks) * run.model.layers / (parallel.pipeline * chunks)


def layer_backward_bytes(run: RunConfig) -> int:
    """Bytes alive while one layer runs its backward pass, at its MLP, where it holds most.

    They are the gradients of gate and up (2F) and of their product (F), sharded over tensor ranks, and two whole
    streams: the input gathered from sequence parallelism and its gradient. Under full recomputation everything that
    the layer keeps is computed again and added to them.
    """
    gradients = 3 * run.model.ffn / run.parallel.tensor + 2 * run.model.hidden
    again = stored_activation_bytes(run, recompute_attention=False) if run.parallel.recompute == "full" else 0
    return math.ceil(rank_positions(run) * element_bytes(run) * gradients) + again


def head_bytes(run: RunConfig) -> int:
    """Bytes alive while the LM head and the loss run, on as many rows as there can be (of noise: at a level near 1).

    A loss that walks through the vocabulary in chunks (loss/lm_head.py) holds in its backward pass
    1. four fp32 chunks of logits [rows, width]: the last chunk kept from the forward pass, the chunk computed again,
       its gradient, and that gradient (or the one before it) once more as the product takes it;
    2. the gradient of this tensor rank's weight [V / ranks, E], before it is added to the fp32 one;
    3. two fp32 vectors of E for each selected row: the gradient that the chunks add up to, and what one chunk adds;
    4. four streams of E for each position: the last hidden states, gathered; the rows selected from them; and the
       gradients of both.
    An objective whose loss needs whole rows of logits holds `whole_logits` fp32 tables [rows, V / ranks] in place of 1
    to 3; its head is frozen.
    """
    model, objective = run.model, objective_of(run)
    streams = rank_positions(run) * 4 * model.hidden * element_bytes(run)
    columns = padded_vocab(model.vocab_size, run.parallel.tensor) // run.parallel.tensor
    rows = run.train.micro_batch * objective.most_head_rows() // run.parallel.context
    if objective.whole_logits:
        return rows * columns * objective.whole_logits * FP32 + streams
    chunks = LOGIT_CHUNKS * rows * min(columns, chunk_width(rows)) * FP32
    return chunks + columns * model.hidden * element_bytes(run) + 2 * rows * model.hidden * FP32 + streams


def trained_parameters(run: RunConfig) -> int:
    """What a run trains: the whole model, but for a vision tower that stays as it is; the adapter of its objective; or
    the sampler's network."""
    if run.sampler is not None:
        return sampler_parameters(run)
    lora = objective_of(run).adapter
    if lora is not None:
        return adapter_parameters(run.model, lora)
    return model_parameters(run.model).total + vision_parameters(run).trained


def checkpoint_size(run: RunConfig) -> CheckpointSize:
    """A checkpoint holds every parameter once: the weights, and the optimizer's fp32 master copy and moments.

    In fp32 the distributed optimizer still writes its copy of the weights. Where an adapter is trained, a checkpoint
    holds the adapter alone. Of a vision tower that is not trained it holds the weights.
    """
    parameters, vision = trained_parameters(run), vision_parameters(run)
    weights = parameters + vision.total - vision.trained
    master = run.train.precision == "bf16" or run.parallel.distributed_optimizer
    return CheckpointSize(weights * element_bytes(run), parameters * FP32 * (MOMENTS + (1 if master else 0)))

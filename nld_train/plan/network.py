"""Bytes that one GPU sends over the network in a step, by what they are for, and the least time that they take.

Collectives are reckoned as rings send them: of a tensor that is whole on n ranks, all-gather and reduce-scatter send
(n - 1) / n from each rank, all-reduce twice that. `rehearsal/rank_traffic.py` counts what Megatron really calls, and
tests/rehearsal/test_traffic.py compares.

Left out, because they are small beside these: one number for each row of the LM head, the gradients of norms over the
tensor ranks, the counts that losses are divided by, the gradient's norm; and latency, the time before the first byte,
which grows with the ranks of a ring. With FP8 the layers' inputs may travel in one byte in place of the two of here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.plan.memory import FP32, element_bytes, rank_positions, stream_elements
from nld_train.plan.row_counts import micro_batches
from nld_train.plan.vision_plan import stage_parameters, vision_parameters

NODE = 8  # GPUs that NVLink joins: an H100 node
NVLINK = 450e9  # bytes/s that a GPU sends in a node: NVLink 4 of an H100 SXM, each direction (data sheet: 900 in both)
NETWORK = 50e9  # bytes/s that a GPU sends to other nodes: its own 400 Gbit/s port (NDR InfiniBand, one for each GPU)
FORWARD, BACKWARD = 2, 2  # collectives of a layer in each pass: behind attention's input and output maps, and the MLP's


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends in a step for one purpose."""

    purpose: str
    sent: float  # bytes
    rate: float  # bytes/s at most

    @property
    def seconds(self) -> float:
        """The least time that it takes."""
        return self.sent / self.rate


def network_traffic(run: RunConfig) -> list[Traffic]:
    """What a GPU sends in a step, of the pipeline stage whose traffic takes longest."""
    stages = (stage_traffic(run, stage, expected_rows(run)) for stage in range(run.parallel.pipeline))
    return max(stages, key=lambda found: sum(each.seconds for each in found))


def expected_rows(run: RunConfig) -> float:
    """LM-head rows of a micro-batch on one context rank, as the mean over the noise."""
    return run.train.micro_batch * objective_of(run).expected_head_rows() / run.parallel.context


def stage_traffic(run: RunConfig, stage: int, head_rows: float) -> list[Traffic]:
    """What a GPU of this pipeline stage sends in a step, with so many LM-head rows in a micro-batch.

    Megatron numbers ranks with tensor first, then context, data and pipeline: ranks of a group are `stride` apart.
    """
    cut = run.parallel
    assert objective_of(run).adapter is None, f"{run.name}: a frozen network sends other things"
    replicas = cut.data * cut.context
    counted: list[tuple[str, int, int, Callable[[], float]]] = [
        ("gradients", replicas, cut.tensor, lambda: gradient_bytes(run, stage)),
        ("weights", replicas, cut.tensor, lambda: gathered_weight_bytes(run, stage)),
        ("tensor", cut.tensor, 1, lambda: tensor_bytes(run, stage, head_rows)),
        ("context", cut.context, cut.tensor, lambda: context_bytes(run)),
        ("pipeline", cut.pipeline, cut.world_size // cut.pipeline, lambda: pipeline_bytes(run, stage)),
    ]
    found = [
        Traffic(purpose, count(), group_rate(ranks, stride)) for purpose, ranks, stride, count in counted if ranks > 1
    ]
    return [each for each in found if each.sent]


def group_rate(ranks: int, stride: int) -> float:
    """Bytes/s that each of `ranks` ranks, `stride` apart, can send at most while all such groups are at work.

    A ring that runs through a node leaves it once, whichever of its m members there are in it: other groups' members
    use the other GPUs' ports in the same way, and each group has m of the node's ports.
    """
    members = min(ranks, max(1, NODE // stride))
    return NVLINK if members == ranks else min(NVLINK, members * NETWORK)


def ring_share(ranks: int) -> float:
    """(n - 1) / n: what each rank sends of a whole tensor in an all-gather or a reduce-scatter."""
    return (ranks - 1) / ranks


def gradient_bytes(run: RunConfig, stage: int) -> float:
    """Gradients of the stage's parameters, summed in fp32 over data and context ranks, once a step.

    A reduce-scatter under the distributed optimizer, (n - 1) / n of 4 bytes a parameter; else an all-reduce, twice it.
    """
    replicas, passes = run.parallel.data * run.parallel.context, 1 if run.parallel.distributed_optimizer else 2
    return passes * ring_share(replicas) * FP32 * stage_parameters(run, stage)[1]


def gathered_weight_bytes(run: RunConfig, stage: int) -> float:
    """The distributed optimizer's all-gather of updated weights in their own precision, once a step; else nothing."""
    if not run.parallel.distributed_optimizer:
        return 0.0
    replicas = run.parallel.data * run.parallel.context
    return ring_share(replicas) * element_bytes(run) * stage_parameters(run, stage)[1]


def tensor_bytes(run: RunConfig, stage: int, head_rows: float) -> float:
    """What tensor parallelism sends, in all micro-batches of a step. Streams are [positions, B, E].

    1. With sequence parallelism a layer's forward gathers the inputs of two maps and scatters the sums of two outputs;
       its backward does the same with their gradients, and gathers the two inputs again for the weights' gradients: 10
       times (t - 1) / t of a stream. Without it there are 2 all-reduces in each pass. Full recomputation runs the
       forward once more.
    2. The embedding scatters its sum and gathers the gradient, or all-reduces its sum. Where features of images are put
       into it, it does both: an all-reduce of the sum, and the gathering of the gradient.
    3. The head gathers the last hidden states under sequence parallelism; of its rows' gradient [R, E] fp32 it makes an
       all-reduce.
    4. The gradients of the vision tower and the projector are averaged, once a step: an all-reduce in fp32.
    """
    cut = run.parallel
    forwards = 2 if cut.recompute == "full" else 1
    # An all-reduce is a reduce-scatter and an all-gather: it counts as two.
    layer = 2 * (FORWARD * forwards + BACKWARD) + (BACKWARD if cut.sequence else 0)
    streams = layer * run.model.layers / cut.pipeline
    streams += 2 if stage == 0 else 0
    streams += 1 if stage == 0 and cut.sequence and run.vision is not None else 0
    last = stage == cut.pipeline - 1
    streams += 1 if last and cut.sequence else 0
    stream = rank_positions(run) * run.model.hidden * element_bytes(run)
    head = 2 * head_rows * run.model.hidden * FP32 if last else 0.0
    averaged = 2 * FP32 * vision_parameters(run).trained if stage == 0 else 0
    return ring_share(cut.tensor) * (micro_batches(run) * (streams * stream + head) + averaged)


def context_bytes(run: RunConfig) -> float:
    """What attention/context_parallel.py sends in all micro-batches: a layer's forward gathers keys and values, 2 G D a
    token, of all clean tokens, and of all noisy ones where packed documents are kept apart; its backward scatters
    their gradients. Recomputation gathers once more."""
    cut, model = run.parallel, run.model
    tokens = run.data.sequence_length * (2 if run.diffusion.dual and run.diffusion.document_mask else 1)
    keys = run.train.micro_batch * tokens * 2 * model.kv_heads * model.head_dim / cut.tensor * element_bytes(run)
    times = 2 + (0 if cut.recompute == "none" else 1)
    return micro_batches(run) * model.layers / cut.pipeline * times * ring_share(cut.context) * keys


def pipeline_bytes(run: RunConfig, stage: int) -> float:
    """Hidden states sent on and their gradients sent back, by each chunk in each micro-batch; the last chunk of all
    sends nothing on, the first nothing back. Sequence parallelism sends a tensor rank's part of the positions alone."""
    cut = run.parallel
    sends = 2 * cut.virtual_pipeline - (stage == 0) - (stage == cut.pipeline - 1)
    return micro_batches(run) * sends * rank_positions(run) * stream_elements(run) * element_bytes(run)

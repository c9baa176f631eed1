"""Floating-point operations (FLOPs) of a run, forward and backward, and the time they take.

A multiplication and the addition that follows it are two operations. The backward pass of a matrix product is two
products of the same size (the gradients of both factors), so a product costs three times its forward.

Counted are the layers' linear maps, attention over the pairs that see each other, and the LM head on the rows that a
loss needs. Not counted are norms, activations, rotary angles, softmax and the optimizer, which are small beside these;
nor what recomputation computes a second time, because model FLOPs utilisation (MFU) is defined without it.
"""

from dataclasses import dataclass

from nld_train.config import RunConfig
from nld_train.fp8_recipes import SPEED
from nld_train.objectives.choose import objective_of
from nld_train.objectives.contract import Objective
from nld_train.plan.parameters import matrix_parameters
from nld_train.plan.row_counts import row_positions, run_tokens, run_visible_pairs
from nld_train.plan.vision_plan import vision_flops

PASSES = Objective.matrix_passes  # of a product that is trained: forward once, backward twice
H100_BF16 = 989e12  # FLOP/s of an H100 SXM, dense
MFU = 0.4  # the share of that peak that a plan assumes
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class RowFlops:
    """FLOPs of one row, forward and backward."""

    layers: float  # the linear maps of all layers
    attention: float  # query x key and probability x value, in all layers
    head: float  # expected over the noise
    vision: float  # the tower and the projector, on as many image cells as vision_plan reckons with

    @property
    def total(self) -> float:
        """FLOPs of all parts."""
        return self.layers + self.attention + self.head + self.vision


def row_flops(run: RunConfig) -> RowFlops:
    """FLOPs of one row of L tokens (S positions in the model)."""
    model, objective = run.model, objective_of(run)
    layers = 2 * matrix_parameters(model) * row_positions(run)
    attention = 2 * 2 * model.heads * model.head_dim * run_visible_pairs(run)
    head = 2 * model.hidden * model.vocab_size * objective.expected_head_rows()
    passes = objective.matrix_passes
    vision = vision_flops(run, passes)
    return RowFlops(passes * model.layers * layers, passes * model.layers * attention, passes * head, vision)


def flops_per_token(run: RunConfig) -> float:
    """FLOPs for each of the L tokens of a row."""
    return row_flops(run).total / run.data.sequence_length


def run_flops(run: RunConfig) -> float:
    """FLOPs of all iterations, evaluations left out."""
    return flops_per_token(run) * run_tokens(run)


def run_days(run: RunConfig) -> float:
    """Days on parallel.world_size H100s at `MFU`; with FP8 the layers' linear maps take 1 / `SPEED` of their time.

    The vision tower is on the first pipeline stage, and every tensor rank runs all of it: it takes as long as one GPU
    needs, and the others of a replica of the model wait for it or do the same.
    """
    row = row_flops(run)
    faster = row.layers / SPEED if run.train.fp8 != "none" else row.layers
    share = (faster + row.attention + row.head + row.vision * run.parallel.model_ranks) / row.total
    return share * run_flops(run) / (run.parallel.world_size * H100_BF16 * MFU) / SECONDS_PER_DAY

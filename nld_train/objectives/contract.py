"""What a training objective is: everything between a row of the data and the number that is differentiated.

The trainer, the plan and the start checks ask a run's objective (`objectives.choose.objective_of`), and none of them
knows which one it is. Importing the files of this room imports no torch, so that a run can be planned anywhere: what
planning asks is plain arithmetic, and the methods that handle tensors import what they need when they are called. What
needs Megatron is behind the names of `ModelForwards`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nld_train.config import RunConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nld_train.dual_stream.context_shard import ContextShard
    from nld_train.loss.vocabulary import VocabularyShard
    from nld_train.types import Batch, HeadRequest, Row

    # What Megatron sums over the global batch: the numerator [], its count [], and (sum, count) pairs [2] to report.
    LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


class LoraSettings(Protocol):
    """The settings of a LoRA on o_proj, as a section of the run's configuration holds them."""

    @property
    def rank(self) -> int:
        """Rows r of its matrix A."""

    @property
    def alpha(self) -> float:
        """The adapter's output is scaled by alpha / rank."""

    @property
    def dropout(self) -> float:
        """Share of the adapter's input that is dropped."""

    @property
    def adapter(self) -> str | None:
        """A PEFT folder to start from; None: B starts at zero."""


class MicroBatch(Protocol):
    """What the loader and the trainer need of a batch, whatever the objective puts into it."""

    @property
    def sample_indices(self) -> "Tensor":
        """[B] int64: the rows' numbers in the run."""

    def to(self, device: "torch.device") -> "MicroBatch":
        """The same batch on another device, asynchronously from pinned memory."""

    def pin_memory(self) -> "MicroBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this by name."""


class ModelForwards(Protocol):
    """What an objective may ask of the model; the trainer binds these names to Megatron's (train/forward_step.py)."""

    @property
    def training(self) -> bool:
        """False in an evaluation."""

    def vocabulary_shard(self) -> "VocabularyShard":
        """Which columns of the vocabulary this rank's logits are."""

    def position_nll(self, batch: "Batch") -> "Tensor":
        """Cross-entropy of the batch's head positions, [R_ar + R_diff] nats; before the last pipeline stage the hidden
        states [S, B, E] that are sent on."""

    def position_logits(self, request: "HeadRequest") -> "Tensor":
        """Logits of the requested positions [R, V / ranks], with the adapter where the run trains one; the head itself
        gets no gradient."""

    def judge_blocks(self, features: "Tensor", masked: "Tensor", present: "Tensor") -> "Tensor":
        """What the sampler's network says of blocks: logits [N, B] of features [N, B, F]."""

    def base_causal_logits(self, request: "HeadRequest") -> "Tensor":
        """The same logits [R, V / ranks], without the adapter and without gradients; the noisy half is read left to
        right."""


class Objective(ABC):
    """What a run trains: from a row to a loss. Made once from the run's settings."""

    section: ClassVar[str]  # the section of RunConfig that holds its settings
    matrix_passes: ClassVar[int] = 3  # matrix products of a step, counted in forwards: one forward, two of the backward

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    # What planning and starting ask; no torch.

    @abstractmethod
    def expected_head_rows(self) -> float:
        """LM-head rows of a row of supervised tokens, as the mean over the noise."""

    @abstractmethod
    def most_head_rows(self) -> int:
        """LM-head rows of a row at most: what memory must hold."""

    @property
    def whole_logits(self) -> int:
        """How many fp32 tables of logits [R, V / ranks] are alive at once; 0: the vocabulary is walked through in
        chunks (loss/lm_head.py)."""
        return 0

    @property
    def adapter(self) -> LoraSettings | None:
        """The LoRA that is trained in place of the model, which is then frozen; None: the model itself is trained."""
        return None

    @property
    def overlaps_communication(self) -> bool:
        """Whether gradients are reduced while the backward pass goes on. An adapter's are too few to be worth hiding,
        and its step may run the network twice."""
        return self.adapter is None

    def init_to_read(self, resumes: bool) -> str | None:
        """The `init` whose weights this start reads, or None. A fresh start reads it. Where an adapter is trained,
        every start does, because the adapter's checkpoints lack the weights that it changes."""
        return self.run.init if self.adapter is not None or not resumes else None

    def for_evaluation(self) -> "Objective":
        """The objective by which the validation rows are drawn."""
        return self

    @property
    def drafted_rows(self) -> int:
        """How many validation rows are drafted at every evaluation, beside what `for_evaluation` measures; 0: none."""
        return 0

    @property
    def patience(self) -> tuple[str, int] | None:
        """The figure of evaluations that says which checkpoint is the best, and after how many evaluations in a row
        without a better one the run is finished; None: its iterations alone say when."""
        return None

    def figures_text(self, figures: dict[str, float]) -> str:
        """The reported figures of a step as one line of the terminal shows them: "AR loss 3.9712  mask ratio 0.502".
        The shares of the drafts that are kept place by place are left to the report."""
        from nld_train.loss.objective import KEPT

        shown = {name: value for name, value in figures.items() if not name.startswith(KEPT)}
        places = {name: 3 if name == "mask ratio" else 4 for name in shown}
        return "  ".join(f"{name} {value:.{places[name]}f}" for name, value in shown.items())

    # What the loader's workers and the ranks ask; torch is imported inside.

    @abstractmethod
    def draw_row(self, row: Any, purpose: str) -> Any:
        """The row with its random draw: a pure function of the row, of `purpose` ("train", "validation") and of the
        run's settings."""

    def draw_fullest(self, row: "Row") -> Any:
        """The row with the draw that takes most memory: `most_head_rows` of them, where every token of the row is
        supervised. The memory trial trains on it (train/callbacks/memory_trial.py)."""
        return self.draw_row(row, "train")

    @abstractmethod
    def collate_draws(self, draws: Sequence[Any], shard: "ContextShard") -> MicroBatch:
        """A micro-batch of what `draw_row` gave; a context rank is given its `shard` of it."""

    def evaluated_figures(self, add_up: "Callable[[Tensor], None]") -> dict[str, float]:
        """Called behind the last batch of an evaluation: figures that are no means over positions, the same on every
        rank. add_up: sums a tensor of any shape over the data ranks, in place."""
        return {}

    @abstractmethod
    def forward_loss(self, model: ModelForwards, batch: Any) -> "tuple[Tensor, LossFunction]":
        """One micro-batch: the model's output (logits [R, V / ranks], or cross-entropy [R]), and the function that
        turns it into the loss, a scalar [].

        `calculate_per_token_loss` is on: Megatron divides the summed gradient by the summed count of the global batch.
        """

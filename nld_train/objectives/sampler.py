"""The sampler's objective [paper sec. 3.2, appendix A]: is a masked place's top-1 the token that will stand there?"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nld_train.config import RunConfig
from nld_train.objective_sections import COMPONENTS, SamplerConfig
from nld_train.objectives.contract import ModelForwards, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.dual_stream.context_shard import ContextShard
    from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape
    from nld_train.objectives.contract import LossFunction
    from nld_train.trajectories.sampler_batch import SamplerBatch, TrajectoryRow
    from nld_train.types import Row

AUC, CONFIDENCE_AUC = "AUC", "AUC of confidence"
BAND = "band "  # followed by the number of a band of probability from 1 on, and one of:
BAND_FIGURES = ("count", "said", "right")
LOG_ODDS = "log(p_1 / (1 - p_1)) within -CAP..CAP"  # the statistic that is the model's own confidence, as a score


def sampler_shape(asked: SamplerConfig, components: int) -> "NetworkShape":
    """The shape of the network that a run trains, for embeddings of P components."""
    from nld_train.hf.sampler_features_nemotron_labs_diffusion import feature_count
    from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape

    return NetworkShape(
        features=feature_count(components),
        layers=asked.layers,
        width=asked.width,
        ffn=asked.ffn,
        heads=asked.heads,
        dropout=asked.dropout,
        attention=asked.attention,
        top_embedding=asked.top_embedding,
    )


class SamplerObjective(Objective):
    """A small network beside the model, which is not loaded."""

    section = "sampler"

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self._counts: Tensor | None = None  # of an evaluation so far: [2 scorers, 2 labels, BINS]

    @property
    def settings(self) -> SamplerConfig:
        """The shape of the network, and how long it is trained."""
        assert self.run.sampler is not None, f"{self.run.name} trains no sampler"
        return self.run.sampler

    @property
    def patience(self) -> tuple[str, int] | None:
        """The AUC of held-out trajectories [paper, appendix A]."""
        return (AUC, self.settings.patience) if self.settings.patience else None

    def expected_head_rows(self) -> float:
        """None: it has no LM head."""
        return 0.0

    def most_head_rows(self) -> int:
        """None: it has no LM head."""
        return 0

    def figures_text(self, figures: dict[str, float]) -> str:
        """Without the bands of the calibration, which are left to the report."""
        return super().figures_text({name: value for name, value in figures.items() if not name.startswith(BAND)})

    def draw_row(self, row: "TrajectoryRow", purpose: str) -> "TrajectoryRow":
        """The row as it is: nothing is drawn."""
        return row

    def draw_fullest(self, row: "Row") -> "TrajectoryRow":
        """A block of all tokens of a row that commits one token a step, whatever the row holds."""
        import torch

        from nld_train.hf.sampler_features_nemotron_labs_diffusion import feature_count
        from nld_train.trajectories.sampler_batch import TrajectoryRow
        from nld_train.trajectories.trajectory import StepExamples

        length = self.run.data.sequence_length
        masked = torch.ones(length - 1, length).triu(1).bool()
        features = torch.zeros(length - 1, length, feature_count(min(COMPONENTS, self.run.model.hidden)))
        return TrajectoryRow(row.index, StepExamples(features, masked, masked, masked))

    def collate_draws(self, draws: "Sequence[TrajectoryRow]", shard: "ContextShard") -> "SamplerBatch":
        """The steps of some trajectories, N blocks padded to the longest."""
        from nld_train.trajectories.sampler_batch import collate_trajectories

        assert shard.ranks == 1, f"{shard}: a sampler's blocks stay whole"
        return collate_trajectories(draws)

    def forward_loss(self, model: ModelForwards, batch: "SamplerBatch") -> "tuple[Tensor, LossFunction]":
        """The network's logits [N, B], and their cross-entropy. The count is of judged positions."""
        logits = model.judge_blocks(batch.features, batch.masked, batch.present)
        if not model.training:
            self._count_scores(logits, batch)
        return logits, partial(self._judgement_loss, batch)

    def _judgement_loss(self, batch: "SamplerBatch", logits: "Tensor") -> "tuple[Tensor, Tensor, dict[str, Tensor]]":
        """The numerator [], its count [], and (sum, count) pairs [2] to report."""
        import torch

        from nld_train.loss.sampler_loss import judgement_loss

        total, count = judgement_loss(logits, batch.labels, batch.judged), batch.judged.sum()
        agreed = (((logits > 0) == batch.labels) & batch.judged).sum()
        right = (batch.labels & batch.judged).sum()
        sums = {"sampler loss": total, "judged rightly": agreed, "predictions right": right}
        reported = {name: torch.stack([value.float(), count.float()]).detach() for name, value in sums.items()}
        return total, count.int(), reported

    def _count_scores(self, logits: "Tensor", batch: "SamplerBatch") -> None:
        """Add an evaluation's scores to the counts, beside those of the model's own confidence."""
        import torch

        from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS
        from nld_train.loss.sampler_loss import score_counts

        confidence = batch.features[..., STATISTICS.index(LOG_ODDS) - len(STATISTICS)]
        labels = batch.labels[batch.judged]
        found = torch.stack([score_counts(each.detach()[batch.judged], labels) for each in (logits, confidence)])
        self._counts = found if self._counts is None else self._counts + found

    def evaluated_figures(self, add_up: "Callable[[Tensor], None]") -> dict[str, float]:
        """AUC of the sampler and of the confidence, and the bands of the calibration that hold a score. add_up: is
        given the counts [2 scorers, 2 labels, BINS]."""
        from nld_train.loss.sampler_loss import area_under_roc, calibration_bands

        assert self._counts is not None, "an evaluation has batches on every rank"
        add_up(self._counts)
        (own, confidence), self._counts = self._counts, None
        bands = {
            f"{BAND}{number} {name}": value
            for number, band in enumerate(calibration_bands(own), start=1)
            for name, value in zip(BAND_FIGURES, band, strict=True)
            if not math.isnan(value)
        }
        return {AUC: area_under_roc(own), CONFIDENCE_AUC: area_under_roc(confidence), **bands}

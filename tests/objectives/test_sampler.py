"""The sampler's objective, from trajectories to the numbers that Megatron adds up, on the real network."""

from dataclasses import replace

import pytest
import torch

from nld_train.dual_stream.context_shard import WHOLE
from nld_train.errors import UserError
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.loss.sampler_loss import area_under_roc, score_counts
from nld_train.objectives.sampler import AUC, CONFIDENCE_AUC, SamplerObjective
from nld_train.recipe import load_recipe
from nld_train.trajectories.sampler_batch import TrajectoryRow
from nld_train.trajectories.trajectory import SEED, Trajectory
from nld_train.types import Row

RUN = load_recipe("tiny_sampler")
COORDINATES = torch.randn(50, 2, generator=torch.Generator().manual_seed(3)).half()
END = 7


class NetworkForwards:
    """The network itself, without Megatron around it."""

    def __init__(self, training: bool = True) -> None:
        torch.manual_seed(0)
        self.training = training
        self.network = SamplerNetwork(NetworkShape(18, layers=1, width=8, ffn=12, heads=2))

    def judge_blocks(self, features, masked, present):
        return self.network(features, masked, present)


def row(index: int, length: int) -> TrajectoryRow:
    """A trajectory that commits one place a step, from the right."""
    generator = torch.Generator().manual_seed(index)
    positions = length * (length - 1) // 2
    final = torch.randint(50, (length,), dtype=torch.int32, generator=generator)
    top = torch.randint(50, (positions, 3), dtype=torch.int32, generator=generator)
    committed = torch.tensor([SEED, *reversed(range(length - 1))], dtype=torch.int16)
    way = Trajectory(final, committed, top, torch.rand(positions, 12, generator=generator).half())
    right = torch.rand(positions, generator=generator) < 0.5
    own = final.expand(way.step_masks().shape)[way.step_masks()]
    way.top[right, 0] = own[right]
    return TrajectoryRow(index, way.step_examples(COORDINATES, (END,)))


def one_by_one(rows: list[TrajectoryRow], network) -> tuple[list[float], list[bool]]:
    """Logit and label of every judged place of every step, each block by itself."""
    logits, labels = [], []
    for each in rows:
        steps = each.examples
        for step in range(len(steps.masked)):
            said = network(steps.features[step : step + 1], steps.masked[step : step + 1])[0]
            for place in steps.judged[step].nonzero().flatten().tolist():
                logits.append(float(said[place].detach()))
                labels.append(bool(steps.labels[step, place]))
    return logits, labels


def test_the_loss_of_a_batch_is_that_of_its_steps_one_by_one() -> None:
    """Blocks of 3 and of 5, which are padded together."""
    objective, model = SamplerObjective(RUN), NetworkForwards()
    rows = [objective.draw_row(row(0, 3), "train"), row(1, 5), row(2, 3)]
    batch = objective.collate_draws(rows, WHOLE)
    assert batch.features.shape == (2 + 4 + 2, 5, 18) and batch.sample_indices.tolist() == [0, 1, 2]
    output, loss = objective.forward_loss(model, batch)
    total, count, reported = loss(output)
    logits, labels = one_by_one(rows, model.network)
    want = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(labels).float(), reduction="sum"
    )
    assert float(total.detach()) == pytest.approx(float(want), rel=1e-5) and int(count) == len(labels)
    assert reported["predictions right"].tolist() == [sum(labels), len(labels)]
    assert reported["judged rightly"][0] == sum((z > 0) == y for z, y in zip(logits, labels, strict=True))


def test_the_fullest_row_commits_one_token_a_step() -> None:
    """As long as a row, whatever the row holds: what the memory trial trains on."""
    objective = SamplerObjective(RUN)
    full = objective.draw_fullest(Row(5, torch.zeros(33), torch.ones(33, dtype=torch.bool), None))
    assert full.examples.masked.sum(1).tolist() == list(range(31, 0, -1)) and full.examples.masked.shape == (31, 32)
    batch = objective.collate_draws([full, full], WHOLE)
    assert batch.features.shape == (62, 32, 144) and int(batch.judged.sum()) == 2 * sum(range(32))


def test_an_evaluation_ranks_all_its_batches_and_training_none() -> None:
    objective = SamplerObjective(RUN)
    model = NetworkForwards(training=False)
    batches = [[row(i, 5) for i in range(6)], [row(i, 4) for i in range(6, 9)]]
    for rows in batches:
        objective.forward_loss(model, objective.collate_draws(rows, WHOLE))
    objective.forward_loss(NetworkForwards(), objective.collate_draws(batches[0], WHOLE))
    figures = objective.evaluated_figures(lambda counts: counts.mul_(2))  # as if another rank had the same
    rows = [each for batch in batches for each in batch]
    logits, labels = (torch.tensor(each) for each in one_by_one(rows, model.network))
    assert figures[AUC] == pytest.approx(area_under_roc(score_counts(logits, labels)), abs=1e-6)
    odds = [steps.examples.features[..., 2 * 3 + 9][steps.examples.judged] for steps in rows]
    assert figures[CONFIDENCE_AUC] == pytest.approx(area_under_roc(score_counts(torch.cat(odds), labels)), abs=1e-6)
    assert sum(value for name, value in figures.items() if name.endswith("count")) == 2 * len(labels)
    with pytest.raises(AssertionError):
        objective.evaluated_figures(lambda counts: None)  # the next evaluation starts from nothing


def test_the_terminal_shows_no_bands() -> None:
    text = SamplerObjective(RUN).figures_text({AUC: 0.9, "band 1 count": 5.0})
    assert text == "AUC 0.9000"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("init=out/demo/sft", "with a sampler"),
        ("diffusion.alpha=0.3", "diffusion.alpha=0.3 with a sampler; allowed: 0: its rows have no noisy half"),
        ("train.precision=bf16", "allowed: fp32"),
        ("parallel.tensor=2", "allowed: 1: its network is small"),
        ("data.skip_rows=4", "data.skip_rows=4 with a sampler"),
        ("data.blend=a,b", "one folder of trajectories"),
        ("sampler.heads=5", "an even share of the width"),
        ("sampler.heads=0", "sampler.heads=0"),
        ("sampler.policies=greedy", "one or more of confidence, hybrid"),
        ("checkpoint.keep=4", "a checkpoint at every evaluation"),
        ("checkpoint.interval=25", "a checkpoint at every evaluation"),
        ("train.eval_batches=0", "set sampler.patience=0"),
        ("drafter.rank=8", "drafter"),
    ],
)
def test_what_a_sampler_cannot_be_trained_with_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("tiny_sampler", [override])
    assert said in str(error.value)


def test_without_patience_checkpoints_are_free() -> None:
    run = load_recipe("tiny_sampler", ["sampler.patience=0", "checkpoint.keep=1", "checkpoint.interval=25"])
    assert SamplerObjective(run).patience is None
    assert SamplerObjective(replace(RUN)).patience == (AUC, 4)

"""The step in plain torch layers: two ways to the same numbers."""

import pytest
import torch

from nld_train.bench.measure import Effort
from nld_train.bench.plain_model import PlainNetwork, micro_batch_objective, plain_steps
from nld_train.bench.step_bench import (
    AR,
    JOINT,
    NAIVE,
    bench_steps,
    device_peak_flops,
    endless_batches,
    useful_step_flops,
    with_ar_objective,
    with_fitting_layers,
    with_one_rank,
)
from nld_train.config import RunConfig
from nld_train.plan import memory
from nld_train.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run() -> RunConfig:
    small = ["model.layers=2", "model.hidden=64", "model.ffn=96", "model.vocab_size=512", "data.sequence_length=48"]
    return with_one_rank(load_recipe("tiny_stage2_joint", small))


@pytest.mark.parametrize("stage", [lambda run: run, with_ar_objective], ids=["joint", "AR"])
def test_the_usual_way_and_ours_give_the_same_loss_and_gradients(run: RunConfig, stage) -> None:
    run, found = stage(run), []
    batch = next(endless_batches(run, CPU))
    for naive in (False, True):
        torch.manual_seed(1)
        network = PlainNetwork(run, CPU, naive)
        value = micro_batch_objective(network, batch, run, naive)
        found.append((value.detach(), *torch.autograd.grad(value, list(network.parameters()))))
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-6)


def test_a_step_trains(run: RunConfig) -> None:
    network = PlainNetwork(run, CPU, naive=False)
    before = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    micro_batch_objective(network, next(endless_batches(run, CPU)), run, naive=False).backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_the_table_compares_both_ways_and_both_stages(run: RunConfig) -> None:
    found = bench_steps(run, "plain", plain_steps(run, CPU), Effort(2, 1, budget=60, resident=False), CPU)
    assert [row[0] for row in found.rows] == [JOINT, NAIVE, AR]
    assert any(note.startswith(f"{NAIVE} / {JOINT}: ") for note in found.notes)
    assert (
        found.figures["results"][JOINT]["useful"] == useful_step_flops(run) > useful_step_flops(with_ar_objective(run))
    )


def test_as_many_layers_as_fit_and_not_one_more() -> None:
    run = with_one_rank(load_recipe("nld_8b_stage2_joint"))
    capacities = [40e9, 80e9, 150e9, 1e12]
    layers = [with_fitting_layers(run, int(capacity)).model.layers for capacity in capacities]
    assert layers == sorted(layers) and layers[0] < layers[-1] == run.model.layers == 34
    assert memory.worst_stage(with_fitting_layers(run, int(150e9))).total < 0.85 * 150e9


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100", None)]
)
def test_mfu_is_of_chips_whose_peak_is_known(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak_flops(torch.device("cuda")) == peak
    assert device_peak_flops(CPU) is None


def test_batches_come_round_and_are_those_of_training(run: RunConfig) -> None:
    batches = endless_batches(run, CPU)
    seen = [next(batches) for _ in range(5)]
    assert torch.equal(seen[0].input_ids, seen[4].input_ids)
    assert not torch.equal(seen[0].input_ids, seen[1].input_ids)
    assert seen[0].diffusion_positions.numel() > 0

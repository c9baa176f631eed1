"""The numbers that the loss saw: Megatron's own model on a training batch, and its export in both decoding modes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nld_train.config import RunConfig
from nld_train.convert.exported_code import ExportedModel
from nld_train.convert.hf_folder import open_hf_folder
from nld_train.convert.reference_network import ProbeRow, ReferenceNetwork
from nld_train.convert.source import open_checkpoint_source
from nld_train.run_folder.checkpoints import newest_complete_step
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.paths import step_folder
from tests.model.test_gpt import batch_at, build

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]


def load(model: torch.nn.Module, output: Path) -> None:
    """Megatron's own loading of a checkpoint."""
    from megatron.core import dist_checkpointing

    step = newest_complete_step(output)
    assert step is not None
    state = dist_checkpointing.load(model.sharded_state_dict(), str(step_folder(output, step)))
    weights = {name: state[name] for name in model.state_dict() if not name.endswith("_extra_state")}
    model.load_state_dict(weights, strict=False)


def all_logits(model: torch.nn.Module, input_ids: Tensor) -> Tensor:
    """Megatron's logits of every input position, [B, S, V]: what the loss takes its rows from."""
    from megatron.core.models.gpt import GPTModel

    def head(*, hidden_states: Tensor, **_) -> Tensor:
        return (hidden_states @ model.output_layer.weight.T).transpose(0, 1)

    return GPTModel.forward(
        model, input_ids=input_ids, position_ids=None, attention_mask=None, output_processor=head
    )  # fmt: skip


@pytest.fixture(scope="module")
def both(random_run: Path, exported: Path):
    """A run's configuration, Megatron's model with its checkpoint's weights, that checkpoint, and its export."""
    run = read_frozen_run(random_run)
    model = build(run)
    load(model, random_run)
    described, weights = open_hf_folder(exported)
    return (
        run,
        model.eval(),
        open_checkpoint_source(random_run),
        ExportedModel(exported, described, weights, run.model.layers),
    )


def probes(run: RunConfig, input_ids: Tensor) -> list[ProbeRow]:
    """The rows of a training batch, [noisy | clean] each."""
    return [ProbeRow(clean, noisy, run.diffusion.block_size, 0) for noisy, clean in (ids.chunk(2) for ids in input_ids)]


def test_logits_of_both_modes_are_the_training_ones(both) -> None:
    run, megatron, _, runnable = both
    batch = batch_at(run)
    with torch.no_grad():
        trained = all_logits(megatron, batch.input_ids)
    assert run.data.sequence_length > run.model.rope.original_max_position, "the query scale is at work"
    assert trained.std() > 0.5, "weights wide enough to show a difference"
    for row, expected in zip(probes(run, batch.input_ids), trained, strict=True):
        noisy, clean = expected.chunk(2)
        torch.testing.assert_close(runnable.ar_logits(row), clean, rtol=0, atol=1e-4)
        torch.testing.assert_close(runnable.block_logits(row), noisy, rtol=0, atol=1e-4)


def test_cross_entropies_are_those_the_loss_saw(both) -> None:
    run, megatron, _, runnable = both
    batch = batch_at(run)
    with torch.no_grad():
        seen_by_the_loss = megatron(batch=batch)
    rows = [torch.cat([runnable.block_logits(row), runnable.ar_logits(row)]) for row in probes(run, batch.input_ids)]
    needed = torch.cat(rows)[batch.head_positions]
    found = torch.nn.functional.cross_entropy(needed, batch.head_targets, reduction="none")
    assert len(batch.diffusion_targets) > 10 and len(batch.ar_targets) > 10
    torch.testing.assert_close(found, seen_by_the_loss, rtol=0, atol=1e-4)


def test_verify_compares_with_the_same_network(both) -> None:
    run, megatron, source, _ = both
    batch = batch_at(run)
    network = ReferenceNetwork(run.model, source.weights, torch.float32, run.model.layers)
    with torch.no_grad():
        trained = all_logits(megatron, batch.input_ids)
    for row, expected in zip(probes(run, batch.input_ids), trained, strict=True):
        torch.testing.assert_close(network.logits(row).float(), expected, rtol=0, atol=1e-4)

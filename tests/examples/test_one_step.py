"""The step written out in plain torch against the product's own, on one real rank."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples import one_step
from nld_train.config import DiffusionConfig, ModelConfig, RopeConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.noise.corrupt import corrupt_row
from nld_train.objectives.joint import JointObjective
from nld_train.types import Row
from tests.distributed.ranks import on, small_run
from tests.model.build import build

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    layers=one_step.LAYERS,
    hidden=one_step.E,
    ffn=one_step.F,
    heads=one_step.H,
    kv_heads=one_step.G,
    head_dim=one_step.D,
    vocab_size=one_step.V,
    norm_eps=one_step.NORM_EPS,
    # Rotary embedding without YaRN and query scale, which the page leaves out.
    rope=RopeConfig(theta=one_step.THETA, factor=1.0, original_max_position=64, query_scale_beta=0.0),
)
DIFFUSION = DiffusionConfig(
    alpha=one_step.ALPHA, block_size=one_step.BLOCK, mask_token_id=one_step.MASK, noise_eps=one_step.LEAST_P
)


@pytest.mark.megatron
def test_it_takes_the_products_own_step(one_rank: None, tmp_path: Path) -> None:
    """Two rows of unequal supervision, weights of the Megatron model: loss and gradients."""
    run = small_run("test", tmp_path, alpha=one_step.ALPHA, init=None, parallel=on(1))
    run = replace(run, model=MODEL, diffusion=DIFFUSION)
    model = build(run)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(101, one_step.V, (2, run.data.sequence_length + 1), generator=generator)
    rows = [Row(index, text, torch.rand(text.shape, generator=generator) < 0.8) for index, text in enumerate(tokens)]
    noisy = [corrupt_row(row, DIFFUSION, "train", 2) for row in rows]
    batch = collate_rows(noisy, DIFFUSION)

    numerator, count, _ = JointObjective(run).joint_loss(batch, model(batch=batch))
    ours = numerator / count
    ours.backward()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    page = one_step.one_step([(row.row.tokens, row.row.supervised, row.masked, row.p) for row in noisy], weights)
    page.backward()
    assert sum(row.masked.sum().item() for row in noisy) > 0
    torch.testing.assert_close(page, ours, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_it_runs_as_its_first_line_says() -> None:
    done = subprocess.run(
        [sys.executable, "examples/one_step.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("loss ") and done.stdout.endswith(" nats a token\n")
    assert len((ROOT / "examples" / "one_step.py").read_text().splitlines()) <= 80

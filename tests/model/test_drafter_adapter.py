"""The drafter's adapter on the Megatron model, on one real rank."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nld_train.config import DrafterConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.types import HeadRequest, Row
from tests.model.test_gpt import build, run_at

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]

RUN = run_at(0.3)
LENGTH, BLOCK = RUN.data.sequence_length, RUN.diffusion.block_size


@pytest.fixture(scope="module")
def base(one_rank: None) -> torch.nn.Module:
    return build(RUN)


def adapted_model() -> torch.nn.Module:
    from nld_train.model.drafter_adapter import drafter_lora

    model = build(RUN)  # the same weights every time
    return drafter_lora(DrafterConfig(rank=8), seed=1)([model])[0]


def tokens() -> torch.Tensor:
    return torch.randint(101, RUN.model.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def request(noisy: torch.Tensor, places: torch.Tensor) -> HeadRequest:
    """Logits at `places` of both rows, whose clean half is `tokens`."""
    flat = torch.cat([row * 2 * LENGTH + places for row in range(2)])
    return HeadRequest(torch.cat([noisy, tokens()], 1), None, flat)


def masked() -> torch.Tensor:
    """[seed, mask, mask, ...] of every block."""
    seeds = torch.arange(LENGTH) % BLOCK == 0
    return torch.where(seeds, tokens(), RUN.diffusion.mask_token_id)


NOISY, CLEAN = torch.arange(LENGTH), torch.arange(LENGTH, 2 * LENGTH)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    from nld_train.model.drafter_adapter import adapted_linears

    for linear in adapted_linears(model):
        torch.nn.init.normal_(linear.adapter.linear_out.weight, std=0.2)
    return model


def test_at_its_zero_start_drafts_are_the_base_models_bit_for_bit(base: torch.nn.Module) -> None:
    everywhere = request(masked(), torch.cat([NOISY, CLEAN]))
    assert torch.equal(adapted_model()(batch=everywhere), base(batch=everywhere))


def test_a_trained_adapter_changes_drafts_and_no_bit_of_the_ar_half(base: torch.nn.Module) -> None:
    model = trained(adapted_model())
    assert torch.equal(model(batch=request(masked(), CLEAN)), base(batch=request(masked(), CLEAN)))
    drafts, before = (net(batch=request(masked(), NOISY)) for net in (model, base))
    assert (drafts - before).abs().amax(-1).min() > 1e-3


def test_the_verifier_reads_drafts_as_the_base_model_reads_text(base: torch.nn.Module) -> None:
    """Where the drafts are the row's own tokens, its logits are the clean half's."""
    from nld_train.model.drafter_adapter import verifier_mode

    model = trained(adapted_model())
    with verifier_mode(model):
        read = model(batch=request(tokens(), NOISY))
    torch.testing.assert_close(read, base(batch=request(tokens(), CLEAN)), rtol=1e-5, atol=1e-5)
    assert not read.requires_grad


def test_after_verifying_the_model_drafts_again() -> None:
    from nld_train.model.drafter_adapter import verifier_mode

    model = trained(adapted_model())
    before = model(batch=request(masked(), NOISY))
    with verifier_mode(model):
        between = model(batch=request(masked(), NOISY))
    assert torch.equal(model(batch=request(masked(), NOISY)), before)
    assert not torch.equal(between, before)


def test_the_adapter_alone_is_trained() -> None:
    model = trained(adapted_model())
    model(batch=request(masked(), NOISY)).square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if ".linear_proj.adapter." in name}
    assert len(with_gradient) == 2 * RUN.model.layers
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in with_gradient)


def test_a_head_request_gives_the_logits_that_the_loss_sees(base: torch.nn.Module) -> None:
    row = Row(0, torch.cat([tokens()[0], tokens()[0, :1]]), torch.ones(LENGTH + 1, dtype=torch.bool))
    batch = collate_rows([row], run_at(0.0).diffusion)
    plain = build(run_at(0.0))
    asked = plain(batch=HeadRequest(batch.input_ids, None, batch.ar_positions))
    nll = torch.nn.functional.cross_entropy(asked, batch.ar_targets, reduction="none")
    torch.testing.assert_close(nll, plain(batch=batch), rtol=1e-5, atol=1e-5)


def test_a_stored_adapter_is_started_from(tmp_path: Path) -> None:
    """A run that starts from the PEFT folder of a trained adapter drafts as that one does, bit for bit."""
    from nld_train.model.drafter_adapter import adapted_linears, drafter_lora
    from nld_train.peft_names import WEIGHTS, lora_names

    model = trained(adapted_model())
    stored = {}
    for layer, linear in enumerate(adapted_linears(model)):
        a, b = lora_names(layer)
        stored |= {a: linear.adapter.linear_in.weight.detach(), b: linear.adapter.linear_out.weight.detach()}
    save_file(stored, tmp_path / WEIGHTS)
    again = drafter_lora(DrafterConfig(rank=8, adapter=str(tmp_path)), seed=9)([build(RUN)])[0]
    assert torch.equal(again(batch=request(masked(), NOISY)), model(batch=request(masked(), NOISY)))


def test_a_model_without_the_adapter_is_its_own_verifier(base: torch.nn.Module) -> None:
    """It reads what it has drafted left to right, and afterwards sees whole blocks again."""
    from nld_train.model.drafter_adapter import verifier_mode

    before = base(batch=request(tokens(), NOISY))
    with verifier_mode(base):
        read = base(batch=request(tokens(), NOISY))
    torch.testing.assert_close(read, base(batch=request(tokens(), CLEAN)), rtol=1e-5, atol=1e-5)
    assert not read.requires_grad and torch.equal(base(batch=request(tokens(), NOISY)), before)
    assert (before - read).abs().max() > 1e-3

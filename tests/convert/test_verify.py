"""Every kind of difference is found."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.convert.reference_network import ReferenceNetwork, make_probe_row, reference_frequencies
from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.verify import compare_with_checkpoint, logit_row_starts
from nld_train.errors import UserError
from nld_train.model_sizes import NLD_8B, TINY


def test_an_export_verifies(random_run, exported) -> None:
    findings = {
        finding.what: finding.seen for finding in compare_with_checkpoint(open_checkpoint_source(random_run), exported)
    }
    assert findings["tensors"].startswith("39 = 9 x 4 + 3, 796,928 bytes (0.80 MB)")
    assert findings["Megatron -> HF"] == findings["HF -> Megatron"] == "every bit equal"
    assert set(findings) >= {"inv_freq", "logits, AR", "logits, diffusion"}
    assert "positions 4..27" in findings["logits, diffusion"], "the last row crosses original_max_position=16"


def test_one_bit_is_found(random_run, exported, copy_of) -> None:
    folder = copy_of(exported)
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layers.2.self_attn.v_proj.weight"
    tensors[name].view(torch.int32)[-1, -1] ^= 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} differs from the checkpoint's numbers"):
        compare_with_checkpoint(open_checkpoint_source(random_run), folder)


def edit(folder, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_another_rotary_base_is_found(random_run, exported, copy_of) -> None:
    folder = copy_of(exported)
    content = json.loads((folder / "config.json").read_text())
    edit(folder, rope_parameters=content["rope_parameters"] | {"rope_theta": 1e5}, rope_scaling=None)
    with pytest.raises(UserError, match="config.json describes another model"):
        compare_with_checkpoint(open_checkpoint_source(random_run), folder)


def test_a_mask_outside_the_vocabulary_is_found(random_run, exported, copy_of) -> None:
    folder = copy_of(exported)
    edit(folder, mask_token_id=400)
    with pytest.raises(UserError, match="mask_token_id=400; allowed: ids below vocab_size=400"):
        compare_with_checkpoint(open_checkpoint_source(random_run), folder)


def test_foreign_code_is_not_run(random_run, exported, copy_of) -> None:
    folder = copy_of(exported)
    with (folder / "modeling_ministral.py").open("a") as file:
        file.write("raise SystemExit('run')\n")
    with pytest.raises(UserError, match="modeling_ministral.py is another"):
        compare_with_checkpoint(open_checkpoint_source(random_run), folder)


def test_a_part_of_the_layers_is_said_to_be_a_part(random_run, exported) -> None:
    findings = compare_with_checkpoint(open_checkpoint_source(random_run), exported, layers=2)
    assert all("first 2 of 4 layers" in finding.seen for finding in findings if finding.what.startswith("logits"))


@pytest.mark.parametrize("part", ["query_scale_beta", "factor", "theta"])
def test_logits_show_a_network_of_other_rotary_numbers(random_run, exported, part, monkeypatch) -> None:
    """The comparison can fail: with one number changed on Megatron's side alone it does."""
    from dataclasses import replace

    import nld_train.convert.verify as module

    source = open_checkpoint_source(random_run)
    rope = replace(source.model.rope, **{part: 0.5 + 2 * getattr(source.model.rope, part)})

    def wrong(model, *rest):
        return ReferenceNetwork(replace(model, rope=rope), *rest)

    monkeypatch.setattr(module, "ReferenceNetwork", wrong)
    with pytest.raises(UserError, match="logits in AR mode are off by"):
        compare_with_checkpoint(source, exported)


def test_a_row_crosses_the_original_context() -> None:
    def at(model, length):
        class Source:
            pass

        source = Source()
        source.model = model
        return logit_row_starts(source, length)  # type: ignore[arg-type]

    assert at(NLD_8B, 96) == [0, 16384 - 48]
    assert at(TINY, 48) == [0, 128 - 24]


def test_the_probe_is_the_same_every_time() -> None:
    one, other = make_probe_row(TINY, 100, 16, 104), make_probe_row(TINY, 100, 16, 104)
    assert torch.equal(one.clean, other.clean) and torch.equal(one.noisy, other.noisy)
    assert 0 < (one.noisy == 100).sum() < len(one.noisy) == 48


def test_the_frequencies_end_where_yarn_says() -> None:
    """Fast dimensions keep their frequency, slow ones turn `factor` times slower."""
    plain = NLD_8B.rope.theta ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    found = reference_frequencies(NLD_8B.rope, 128)
    assert found[0] == plain[0]
    assert found[-1] == pytest.approx(plain[-1].item() / 16)

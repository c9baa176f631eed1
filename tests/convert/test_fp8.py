"""FP8 sources of the family: weights times their scales, activations' scales left out."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.convert.actions import import_folder
from nld_train.convert.hf_folder import HFWeights
from nld_train.errors import UserError
from tests.convert.conftest import export, imported

FP8 = torch.float8_e4m3fn


def quantised(folder: Path, table: bool) -> dict[str, torch.Tensor]:
    """Store a Ministral-3 folder's maps in FP8. Returns: what they are worth, in bfloat16."""
    tensors, worth = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.startswith("language_model") and name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        shape = [-(-size // 16) for size in weight.shape] if table else []
        scale = torch.rand(shape, generator=torch.Generator().manual_seed(len(worth))) + 0.01
        wide = scale.repeat_interleave(16, 0).repeat_interleave(16, 1) if table else scale
        tensors[name] = (weight / wide).clamp(-448, 448).to(FP8)
        stored = scale if table else scale.bfloat16()
        wide = wide if table else stored.float()
        worth[name] = (tensors[name].float() * wide).bfloat16()
        tensors[f"{name}_scale_inv"] = stored
        tensors[f"{name.removesuffix('.weight')}.activation_scale"] = torch.ones((), dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    return worth


@pytest.mark.parametrize("table", [False, True], ids=["one scale", "a table of blocks"])
def test_an_fp8_source_is_imported_as_what_it_is_worth(ministral, tmp_path, caplog, table: bool) -> None:
    folder = ministral(tied=False)
    worth = quantised(folder, table)
    with caplog.at_level(logging.INFO):
        import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False)
        import_folder(folder, tmp_path / "text", None, verified=True, overwrite=False, text_only=True)
    assert caplog.text.count(f"in bfloat16: {len(worth)} FP8 tensors") == 2
    assert caplog.text.count("left out, as no weights of the text model: 15 tensors (multi_modal") == 1
    made = load_file(export(tmp_path / "out", tmp_path / "hf") / "model.safetensors")
    for name, expected in worth.items():
        assert torch.equal(made[name.replace("language_model.model.", "encoder.")], expected), name


def test_rows_of_a_table_are_scaled_as_the_whole_is(ministral) -> None:
    folder = ministral(tied=False)
    name, expected = next(iter(quantised(folder, table=True).items()))
    assert torch.equal(HFWeights(folder).read(name, 5, 21), expected[5:21])


def test_fp8_without_scales_and_scales_that_do_not_fit_are_one_line(ministral, tmp_path) -> None:
    folder = ministral(tied=False)
    name = next(iter(quantised(folder, table=False)))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"{name}_scale_inv": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"_scale_inv has the shape \[3\] for a weight of"):
        imported(folder, tmp_path / "one")
    del tensors[f"{name}_scale_inv"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} is FP8 and has no {name}_scale_inv") as caught:
        imported(folder, tmp_path / "two")
    assert "\n" not in str(caught.value)


def test_rotary_buffers_are_left_out_by_name(exported, copy_of, tmp_path, caplog) -> None:
    folder = copy_of(exported)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"encoder.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, folder / "model.safetensors")
    with caplog.at_level(logging.INFO):
        import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False)
    assert "left out, as no weights of the text model: 1 tensors (encoder.layers.0" in caplog.text
    again = export(tmp_path / "out", tmp_path / "hf", dtype=torch.float32)
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["encoder.layers.2.self_attn.v_proj.weight", "diffusion_head.weight"])
def test_weights_that_are_not_finite_are_refused(exported, copy_of, tmp_path, number: float, name: str) -> None:
    folder = copy_of(exported)
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7] = number
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite numbers") as caught:
        import_folder(folder, tmp_path / "made" / "out", None, verified=True, overwrite=False)
    assert "\n" not in str(caught.value) and not list((tmp_path / "made").iterdir())


def test_a_sharded_tied_source_is_read_like_a_single_file(ministral, tmp_path, caplog) -> None:
    folder = ministral(tied=True)
    whole = imported(folder, tmp_path / "whole")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, some in shards.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with caplog.at_level(logging.INFO):
        import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False)
    assert "the model is tied: the head starts as a copy of the embedding" in caplog.text
    files = [export(each, tmp_path / f"hf_{each.name}") / "model.safetensors" for each in (whole, tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()

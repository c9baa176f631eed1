"""A Ministral-3 with its vision tower, made and saved by stock transformers: imported, exported, and the same."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.convert.actions import ExportRequest, export_checkpoint, import_folder, verify_folder
from nld_train.convert.hf_folder import exported_code_files
from nld_train.errors import UserError
from nld_train.run_folder.frozen import read_frozen_vision
from nld_train.vision_config import VisionConfig
from tests.convert.conftest import export, imported
from tests.vision_folder import IMAGE, image_tokens, random_images, save_ministral, stock_ministral

pytestmark = pytest.mark.usefixtures("own_modules")
SIZES = [(2, 3), (4, 1)]


def exported_model(folder: Path, automatic: str = "AutoModel") -> Any:
    """The model of an export, by transformers' own loading of the folder's code."""
    import transformers

    loader = getattr(transformers, automatic)
    return loader.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


def conversation() -> torch.Tensor:
    """[1, n] ids with the tokens of images of SIZES, beyond the original context."""
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(101, 400, (count,), generator=generator).tolist() for count in (5, 3, 9)]
    first, second = (image_tokens(*size) for size in SIZES)
    return torch.tensor([[*texts[0], *first, *texts[1], *second, *texts[2]]])


@pytest.fixture(scope="module", params=["silu", "gelu"])
def both(request, prepared, tmp_path_factory) -> tuple[Any, Path, Path, Path]:
    """transformers' own model, the folder that it saved, the import of it, and the export of that."""
    folder = tmp_path_factory.mktemp("vision")
    model = stock_ministral(request.param)
    save_ministral(model, prepared / "tokenizer", folder / "ministral")
    out = imported(folder / "ministral", folder / "out")
    return model, folder / "ministral", out, export(out, folder / "hf", dtype=torch.float32)


def test_the_logits_with_two_images_stay_those_of_stock_transformers(both) -> None:
    model, _, _, hf = both
    ids, images = conversation(), random_images(SIZES)
    with torch.no_grad():
        expected = model(input_ids=ids, **images).logits
        blind = exported_model(hf)(ids, use_causal_mask=True).logits
        found = exported_model(hf)(ids, use_causal_mask=True, **images).logits
        causal = exported_model(hf, "AutoModelForImageTextToText")(input_ids=ids, **images).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(causal, found, rtol=0, atol=0)
    assert (blind - found).abs().max() > 0.1, "the images show"


def test_every_tensor_keeps_its_bits_and_megatron_gets_them_back(both, tmp_path) -> None:
    model, ministral, out, hf = both
    source, made = load_file(ministral / "model.safetensors"), load_file(hf / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", "encoder.")
        .replace("language_model.lm_head", "diffusion_head")
        .replace("vision_tower", "encoder.vision_tower")
        .replace("multi_modal_projector", "encoder.multi_modal_projector"): tensor
        for name, tensor in source.items()
    }
    assert made.keys() == renamed.keys() and len(made) == len(model.state_dict())
    assert all(torch.equal(made[name], renamed[name]) for name in made)
    again = export(imported(hf, tmp_path / "back"), tmp_path / "again", dtype=torch.float32)
    names = {path.name for path in hf.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    for name in names - {"README.md"}:  # it names its source
        assert (hf / name).read_bytes() == (again / name).read_bytes(), name
    assert (out / "model.json").read_bytes() == (tmp_path / "back" / "model.json").read_bytes()


def test_what_the_folder_says_of_its_tower_is_written_down(both) -> None:
    model, _, out, hf = both
    activation = model.config.vision_config.hidden_act
    assert read_frozen_vision(out) == VisionConfig(
        layers=2, hidden=16, ffn=24, heads=2, activation=activation, patch_size=4, merge=2, longest_edge=48, theta=1e4,
        image_token_id=20, break_token_id=21, end_token_id=22,
    )  # fmt: skip
    content = json.loads((hf / "config.json").read_text())
    assert content["architectures"] == ["NemotronLabsDiffusionVLMModel"]
    assert content["model_type"] == "nemotron_labs_diffusion_vlm"
    assert content["vision_config"]["hidden_act"] == activation and content["image_token_id"] == IMAGE
    assert {file.name for file in exported_code_files(vision=True)} <= {file.name for file in hf.iterdir()}


def test_the_export_is_verified_and_so_is_the_import(both, tmp_path, caplog) -> None:
    _, ministral, _, _ = both
    with caplog.at_level(logging.INFO):
        import_folder(ministral, tmp_path / "out", None, verified=True, overwrite=False)
        export_checkpoint(asked(tmp_path / "out", tmp_path / "hf"))
        verify_folder(tmp_path / "out", tmp_path / "hf", None, 1)
    assert "left out" not in caplog.text
    assert "45 = 9 x 2 + 3 + 9 x 2 + 6 of vision" in caplog.text and caplog.text.count("logits, diffusion") == 2
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["encoder.vision_tower.ln_pre.weight"][3] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match="vision_tower.ln_pre.weight differs from the checkpoint"):
        verify_folder(tmp_path / "out", tmp_path / "hf", None, 1)


def asked(output: Path, target: Path, **changes) -> ExportRequest:
    request = {
        "step": None, "dtype": "bf16", "tokenizer": None, "chat": False, "shard_gb": None, "verified": True,
        "overwrite": False,
    }  # fmt: skip
    return ExportRequest(output=output, target=target, **request | changes)


def test_text_alone_goes_in_and_out_as_ever(both, tmp_path) -> None:
    """Left out at the import or at the export: the same files, and none of a tower."""
    _, ministral, out, hf = both
    import_folder(ministral, tmp_path / "text", None, verified=True, overwrite=False, text_only=True)
    assert read_frozen_vision(tmp_path / "text") is None
    export_checkpoint(asked(tmp_path / "text", tmp_path / "one"))
    export_checkpoint(asked(out, tmp_path / "two", text_only=True))
    import_folder(hf, tmp_path / "third", None, verified=True, overwrite=False, text_only=True)
    export_checkpoint(asked(tmp_path / "third", tmp_path / "three"))
    for other in ("two", "three"):
        names = {path.name for path in (tmp_path / "one").iterdir()}
        assert names == {path.name for path in (tmp_path / other).iterdir()}
        assert not any("vlm" in name or "processor" in name for name in names)
        for name in names - {"README.md", "chat_template.jinja"}:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / other / name).read_bytes(), name
    verify_folder(out, tmp_path / "one", None, 1)
    export_checkpoint(asked(out, tmp_path / "stock", text_only=True, layout="ministral3"))
    with pytest.raises(UserError, match="--as ministral3 of .*, a model with a vision tower; .*add --text-only"):
        export_checkpoint(asked(out, tmp_path / "no", layout="ministral3"))


def test_the_processor_is_transformers_own(both, tmp_path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    _, _, _, hf = both
    processor = AutoProcessor.from_pretrained(hf)
    assert type(processor).__name__ == "PixtralProcessor" and processor.image_token_ids == [20, 21, 22]
    content = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": " and say"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    plain = processor.apply_chat_template([{"role": "user", "content": "Look:  and say"}], add_generation_prompt=True)
    assert text.replace("[IMG]", "") == plain and "Look: [IMG] and say" in text
    inputs = processor(text=[text], images=[Image.new("RGB", (96, 30))], add_special_tokens=False)
    found = inputs["input_ids"][0].tolist()
    start = found.index(IMAGE)  # 96 x 30 pixels become 48 x 15, and 15 is not quite two cells
    assert found[start : start + 14] == image_tokens(2, 6)
    assert inputs["pixel_values"].shape == (1, 3, 16, 48) and inputs["image_sizes"].tolist() == [[16, 48]]


def test_the_names_of_modules_are_read_like_those_of_the_release(both, tmp_path) -> None:
    _, ministral, out, hf = both
    folder = Path(shutil.copytree(ministral, tmp_path / "modules"))
    tensors = load_file(folder / "model.safetensors")
    for before, behind in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        tensors = {name.replace(before, behind) if name.startswith(before) else name: t for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    again = export(imported(folder, tmp_path / "out"), tmp_path / "hf", dtype=torch.float32)
    assert (again / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_what_a_trainer_saves_of_it_is_read_again(both, tmp_path) -> None:
    _, _, out, hf = both
    exported_model(hf).save_pretrained(tmp_path / "saved")
    for path in hf.iterdir():
        if not (tmp_path / "saved" / path.name).exists():
            shutil.copyfile(path, tmp_path / "saved" / path.name)
    again = export(imported(tmp_path / "saved", tmp_path / "back"), tmp_path / "again", dtype=torch.float32)
    assert (again / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "model.json").read_bytes() == (out / "model.json").read_bytes()


def changed_config(folder: Path, section: str | None, **changes) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    (content if section is None else content[section]).update(changes)
    path.write_text(json.dumps(content))


BAD = [
    ("vision_config", {"hidden_act": "relu"}, "vision_config.hidden_act='relu'; allowed: silu or gelu"),
    ("vision_config", {"num_channels": 1}, "vision_config.num_channels=1; allowed: 3: nothing else is computed"),
    ("vision_config", {"head_dim": 4}, "vision_config.head_dim=4; allowed: 8"),
    ("vision_config", {"model_type": "siglip"}, "vision_config.model_type='siglip'"),
    ("vision_config", {"num_hidden_layers": 3}, "lacks vision_tower.transformer.layers.2"),
    ("vision_config", {"intermediate_size": None}, "without vision_config.intermediate_size"),
    (None, {"multimodal_projector_bias": True}, "multimodal_projector_bias=True; allowed: False"),
    (None, {"vision_feature_layer": -2}, "vision_feature_layer=-2; allowed: -1"),
    (None, {"projector_hidden_act": "silu"}, "projector_hidden_act='silu'; allowed: 'gelu'"),
    (None, {"vision_config": None}, "without vision_config; .*; do: import it with --text-only"),
    (None, {"spatial_merge_size": 3}, "longest_edge=48 with cells of 12 pixels|merging_layer.weight has the shape"),
]


@pytest.mark.parametrize(("section", "changes", "message"), BAD, ids=[next(iter(bad[1])) for bad in BAD])
def test_a_tower_that_is_not_ours_is_refused_in_one_line(both, tmp_path, section, changes, message) -> None:
    folder = Path(shutil.copytree(both[1], tmp_path / "ministral"))
    changed_config(folder, section, **changes)
    with pytest.raises(UserError, match=message) as caught:
        import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False)
    assert "\n" not in str(caught.value)
    import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False, text_only=True)


def test_a_processor_that_makes_other_pixels_is_refused(both, tmp_path) -> None:
    folder = Path(shutil.copytree(both[3], tmp_path / "hf"))
    for name, changes, message in (
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}, "image_mean=.0.5, 0.5, 0.5."),
        ("preprocessor_config.json", {"size": {"longest_edge": 1024}}, "size=.'longest_edge': 1024.; allowed: .* 48"),
        ("preprocessor_config.json", {"size": {"height": 48, "width": 48}}, "size=.'height': 48"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale=False"),
        ("processor_config.json", {"patch_size": 16}, "processor_config.json: patch_size=16; allowed: 4"),
        ("processor_config.json", {"image_processor": {"rescale_factor": 1.0}}, "rescale_factor=1.0"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(before) | changes))
        with pytest.raises(UserError, match=message) as caught:
            import_folder(folder, tmp_path / "out", None, verified=True, overwrite=False)
        assert "\n" not in str(caught.value)
        (folder / name).write_text(before)


def test_a_tokenizer_without_image_tokens_is_refused_and_says_what_it_has(both, prepared, tmp_path) -> None:
    folder = Path(shutil.copytree(both[1], tmp_path / "ministral"))
    shutil.copyfile(prepared / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"no control token \[IMG\], \[IMG_BREAK\], \[IMG_END\]; .* <SPECIAL_3> to"):
        imported(folder, tmp_path / "out")
    names = {"image_token": "<SPECIAL_20>", "image_break_token": "<SPECIAL_30>", "image_end_token": "<SPECIAL_31>"}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PixtralProcessor"} | names))
    vision = read_frozen_vision(imported(folder, tmp_path / "named"))
    assert vision is not None and vision.token_ids == (20, 30, 31)

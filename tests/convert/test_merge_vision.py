"""A language model and a tower in one checkpoint: every bit of both, and one line for what does not go together."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nld_train import cli
from nld_train.convert.actions import verify_folder
from nld_train.convert.merge_vision import merge_vision
from nld_train.convert.source import open_checkpoint_source
from nld_train.errors import UserError
from nld_train.run_folder.frozen import read_frozen_model, read_frozen_vision
from tests.convert.conftest import export, imported
from tests.vision_folder import image_tokenizer, save_ministral, stock_ministral

NAMES = "<SPECIAL_20>,<SPECIAL_21>,<SPECIAL_30>"


@pytest.fixture(scope="module")
def tower(prepared, tmp_path_factory) -> Path:
    """A Ministral-3 folder."""
    return save_ministral(stock_ministral(), prepared / "tokenizer", tmp_path_factory.mktemp("tower") / "ministral")


@pytest.fixture(scope="module")
def text_import(exported, tmp_path_factory) -> Path:
    return imported(exported, tmp_path_factory.mktemp("text") / "imported")


@pytest.mark.parametrize("kind", ["random_run", "exported", "text_import"])
def test_every_bit_of_both_is_kept(kind, exported, tower, tmp_path, request) -> None:
    """Of a run, of its Hugging Face folder, and of an import."""
    folder = request.getfixturevalue(kind)
    merge_vision(folder, tower, tmp_path / "merged", NAMES, overwrite=False)
    hf = export(tmp_path / "merged", tmp_path / "hf", dtype=torch.float32)
    made, text, vision = (load_file(each / "model.safetensors") for each in (hf, exported, tower))
    expected = dict(text)
    for name, tensor in vision.items():
        if not name.startswith("language_model"):
            expected[f"encoder.{name}"] = tensor
    assert made.keys() == expected.keys() and len(made) > len(text) + 20
    assert all(torch.equal(made[name], expected[name]) for name in made)
    assert (
        read_frozen_model(tmp_path / "merged") == open_checkpoint_source(folder).model if kind != "exported" else True
    )
    found = read_frozen_vision(tmp_path / "merged")
    assert found is not None and found.token_ids == (20, 21, 30) and found.layers == 2
    names = json.loads((hf / "processor_config.json").read_text())
    assert names["image_token"] == "<SPECIAL_20>" and names["image_end_token"] == "<SPECIAL_30>"
    verify_folder(tmp_path / "merged", hf, None, 1)
    traits = json.loads((tmp_path / "merged" / "import.json").read_text())["traits"]
    assert traits == {"bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 100, "block_size": 8}


def test_padding_of_a_vocabulary_is_left_out(exported, tower, tmp_path) -> None:
    from nld_train.convert.import_checkpoint import write_imported_output

    (tmp_path / "padded").mkdir()
    write_imported_output(exported, tmp_path / "padded", padded_vocab=512)
    merge_vision(tmp_path / "padded", tower, tmp_path / "merged", NAMES, overwrite=False)
    source = open_checkpoint_source(tmp_path / "merged")
    assert source.weights.shapes["output_layer.weight"] == (400, 64)


def test_the_names_of_the_release_are_the_default(exported, tower, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "text"
    image_tokenizer(exported, folder)
    words = ["convert", "merge-vision", str(folder), "--vision", str(tower), "--to", str(tmp_path / "merged")]
    monkeypatch.setattr(sys, "argv", ["nld", *words])
    assert cli.main() == 0, capsys.readouterr().err
    vision = read_frozen_vision(tmp_path / "merged")
    assert vision is not None and vision.token_ids == (20, 21, 22)
    monkeypatch.setattr(sys, "argv", ["nld", *words, "--image-tokens", "[IMG],<SPECIAL_9>,<SPECIAL_12>"])
    assert cli.main() == 2 and "merged exists already" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["nld", *words, "--image-tokens", "[IMG],<SPECIAL_9>,<SPECIAL_12>", "--overwrite"])
    assert cli.main() == 0, capsys.readouterr().err
    vision = read_frozen_vision(tmp_path / "merged")
    assert vision is not None and vision.token_ids == (20, 9, 12)


BAD = {
    "[IMG],[IMG_BREAK],[IMG_END]": r"no control token \[IMG\], .*96 reserved ones, <SPECIAL_3> to <SPECIAL_100>",
    "<SPECIAL_20>,<SPECIAL_21>": "--image-tokens <SPECIAL_20>,<SPECIAL_21>; allowed: three names",
    "<SPECIAL_20>,<SPECIAL_21>,<SPECIAL_21>": "image_token_id, break_token_id and end_token_id",
    "<SPECIAL_20>,<SPECIAL_21>,<SPECIAL_100>": "one of them is the mask, id 100",
    "<SPECIAL_20>,<SPECIAL_21>,import": "no control token import",
}


@pytest.mark.parametrize("names", BAD)
def test_tokens_that_cannot_stand_for_images_are_one_line(exported, tower, tmp_path, names) -> None:
    with pytest.raises(UserError, match=BAD[names]) as caught:
        merge_vision(exported, tower, tmp_path / "made" / "merged", names, overwrite=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_a_tower_of_another_size_and_a_folder_without_one_are_one_line(exported, tower, prepared, tmp_path) -> None:
    small = save_ministral(stock_ministral(hidden=32), prepared / "tokenizer", tmp_path / "small")
    for vision, message in (
        (small, "the projector of .*small is made for hidden=32, the language model has hidden=64"),
        (exported, "hf has no vision tower; allowed: a Ministral-3 with its tower"),
        (tmp_path / "nowhere", "no config.json in .*nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            merge_vision(exported, vision, tmp_path / "merged", NAMES, overwrite=False)
    other = Path(shutil.copytree(tower, tmp_path / "other"))
    content = json.loads((other / "config.json").read_text())
    content["text_config"]["rms_norm_eps"] = 1e-6
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="made for norm_eps=1e-06, the language model has norm_eps=1e-05"):
        merge_vision(exported, other, tmp_path / "merged", NAMES, overwrite=False)
    with pytest.raises(UserError, match="no model.json in .*nowhere"):
        merge_vision(tmp_path / "nowhere", tower, tmp_path / "merged", NAMES, overwrite=False)

"""Folders that reach outside of themselves are refused in one line; a model in Hugging Face's cache is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nld_train.convert.actions import import_folder
from nld_train.convert.adapter import StoredAdapter
from nld_train.convert.config_json import read_folder_config
from nld_train.decode.load import load_model
from nld_train.errors import UserError
from nld_train.peft_names import CONFIG, FOLDER, WEIGHTS


def indexed(folder: Path, named: object) -> None:
    """Let an index name the file of the weights so."""
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), named)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def imported(folder: Path, tmp_path: Path) -> None:
    import_folder(folder, tmp_path / "imported", None, verified=False, overwrite=False)


@pytest.mark.parametrize("named", ["../secret.safetensors", "/secret.safetensors", "sub/x.safetensors", "..", "", 7])
def test_an_index_names_files_beside_it_alone(exported: Path, copy_of, tmp_path: Path, named: object) -> None:
    folder = copy_of(exported)
    shutil.copyfile(folder / "model.safetensors", tmp_path / "secret.safetensors")
    indexed(folder, named)
    for read in (lambda: imported(folder, tmp_path), lambda: load_model(folder, None, torch.device("cpu"))):
        with pytest.raises(UserError, match="model.safetensors.index.json names .*allowed: files beside it") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_not_followed(exported: Path, copy_of, tmp_path: Path, name: str) -> None:
    folder = copy_of(exported)
    (folder / name).rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", Path("../elsewhere"), Path(name)):
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=f"{name} is a link to"):
            imported(folder, tmp_path)
        (folder / name).unlink()


def test_links_inside_the_folder_are_files_of_it(exported: Path, copy_of, tmp_path: Path) -> None:
    folder = copy_of(exported)
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(folder)
    imported(tmp_path / "link", tmp_path)


def test_a_model_in_hugging_faces_cache_is_read(exported: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--me--small"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(exported, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    imported(snapshot, tmp_path)
    (blobs / "config.json").rename(tmp_path / "hub" / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../config.json")
    with pytest.raises(UserError, match="config.json is a link to"):
        imported(snapshot, tmp_path / "again")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_an_adapter_is_not_read_from_elsewhere(exported: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / FOLDER).mkdir()
    for each in (CONFIG, WEIGHTS):
        (tmp_path / each).write_text("{}")
        (tmp_path / FOLDER / each).write_text("{}")
    (tmp_path / FOLDER / name).unlink()
    (tmp_path / FOLDER / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a link to"):
        StoredAdapter(tmp_path, read_folder_config(exported).model)


@pytest.mark.parametrize("named", ["model.safetensors", ["model.safetensors"], None])
def test_an_index_without_a_map_is_one_line(exported: Path, copy_of, tmp_path: Path, named: object) -> None:
    folder = copy_of(exported)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    with pytest.raises(UserError, match="without a weight_map"):
        imported(folder, tmp_path)

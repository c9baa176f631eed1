"""Imports: byte-identical round trips, Ministral-3 tied and untied, padding."""

import json
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from nld_train.convert.actions import import_folder
from nld_train.convert.import_checkpoint import write_imported_output
from nld_train.convert.source import open_checkpoint_source, open_source_tokenizer, read_output_token_ids
from nld_train.convert.torch_dist import StoredWeights
from nld_train.convert.weight_table import EMBEDDING, HEAD, NLD, weight_mappings
from nld_train.errors import UserError
from tests.convert.conftest import export, imported


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hugging_face_to_megatron_and_back_is_byte_identical(random_run, tmp_path, dtype) -> None:
    first = export(random_run, tmp_path / "first", dtype=dtype)
    second = export(imported(first, tmp_path / "back"), tmp_path / "second", dtype=dtype)
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names - {"README.md"}:  # it names its source
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_shards_are_read_like_one_file(random_run, exported, tmp_path) -> None:
    sharded = export(random_run, tmp_path / "sharded", dtype=torch.float32, shard_bytes=100_000)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole = load_file(exported / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, tensor in whole.items():
        assert torch.equal(load_file(sharded / index["weight_map"][name])[name], tensor)
    again = export(imported(sharded, tmp_path / "back"), tmp_path / "again", dtype=torch.float32)
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def stored(output) -> dict[str, torch.Tensor]:
    source = open_checkpoint_source(output)
    unstacked = [unit for unit in weight_mappings(source.model, NLD) if unit.layer is None]
    return {unit.name: source.weights.read(unit, torch.bfloat16) for unit in unstacked}


def test_a_tied_source_is_untied_by_copying_the_embedding(ministral, tmp_path) -> None:
    found = stored(imported(ministral(tied=True), tmp_path / "out"))
    assert torch.equal(found[HEAD], found[EMBEDDING])


def test_an_untied_source_keeps_its_own_head(ministral, tmp_path) -> None:
    folder = ministral(tied=False)
    found = stored(imported(folder, tmp_path / "out"))
    own = load_file(folder / "model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(found[HEAD], own)
    assert not torch.equal(found[HEAD], found[EMBEDDING])


def test_an_untied_source_without_its_head_is_refused(ministral, tmp_path) -> None:
    folder = ministral(tied=True)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="lacks language_model.lm_head.weight"):
        imported(folder, tmp_path / "out")


def test_ministral_weights_leave_under_the_published_names(ministral, tmp_path) -> None:
    folder = ministral(tied=False)
    out = export(imported(folder, tmp_path / "out", text_only=True), tmp_path / "hf")
    source, made = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", "encoder.").replace("language_model.lm_head", "diffusion_head"): tensor
        for name, tensor in source.items()
        if name.startswith("language_model")
    }
    assert made.keys() == renamed.keys()
    assert all(torch.equal(made[name], renamed[name]) for name in made)


def test_a_source_without_mask_and_blocks_gets_the_defaults_of_training(ministral, tmp_path) -> None:
    output = imported(ministral(tied=False), tmp_path / "out")
    source = open_checkpoint_source(output)
    traits = read_output_token_ids(source, open_source_tokenizer(source, None), False)
    assert (traits.bos_token_id, traits.eos_token_id, traits.mask_token_id, traits.block_size) == (1, 2, 100, 32)


def test_padding_is_added_on_import_and_stripped_on_export(exported, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    write_imported_output(exported, tmp_path / "out", padded_vocab=512)
    weights = StoredWeights(tmp_path / "out" / "checkpoints" / "iter_0000000")
    assert weights.shapes[EMBEDDING] == weights.shapes[HEAD] == (512, 64)
    again = export(tmp_path / "out", tmp_path / "hf", dtype=torch.float32)
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--pad-vocab-to 399; allowed: 400 or more"):
        write_imported_output(exported, tmp_path / "out", padded_vocab=399)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(exported, copy_of, tmp_path) -> None:
    from data_prep.train_tokenizer import train_tokenizer

    folder = copy_of(exported)
    train_tokenizer([exported], tmp_path / "other", vocab_size=420)
    shutil.copyfile(tmp_path / "other" / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(UserError, match="has a vocabulary of 420; allowed: at most the model's 400"):
        imported(folder, tmp_path / "out")


INDEXES = {
    "no metadata": lambda index: index.pop("metadata"),
    "no map": lambda index: index.pop("weight_map"),
    "a list": lambda index: index.update(weight_map=["model.safetensors"]),
    "a number": lambda index: index["weight_map"].update(a=3),
    "outside": lambda index: index["weight_map"].update(a="../hf/model.safetensors"),
    "an absolute path": lambda index: index["weight_map"].update(a="/model.safetensors"),
    "nothing": lambda index: index["weight_map"].update(a=""),
    "no such tensor": lambda index: index["weight_map"].update(a="model-00001-of-00002.safetensors"),
    "a tensor left out": lambda index: index["weight_map"].popitem() and None,
    "the other file": lambda index: index.update(
        weight_map=dict(zip(index["weight_map"], reversed(index["weight_map"].values()), strict=True))
    ),
}


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES)
def test_an_index_that_does_not_go_with_its_folder_is_refused(random_run, tmp_path, change) -> None:
    folder = export(random_run, tmp_path / "hf", dtype=torch.float32, shard_bytes=600_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    assert len(set(index["weight_map"].values())) == 2
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json") as caught:
        write_imported_output(folder, tmp_path / "imported")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("room", [0, 500, 3_000, 30_000, 60_000])
def test_an_import_onto_a_full_disk_is_one_line(exported, tmp_path, room) -> None:
    """A process may write no file above a size: for it the disk is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(UserError, match="allowed: a disk with room"):
            import_folder(exported, tmp_path / "imported", None, verified=False, overwrite=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())

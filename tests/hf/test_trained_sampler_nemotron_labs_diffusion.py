"""The files of a trained sampler: written and read, every fault in one line, and used by an export's own class."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.convert.hf_folder import exported_code_files
from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import (
    TrainedSampler,
    load_trained_sampler,
    save_trained_sampler,
)
from tests.decode.random_sampler import COMPONENTS, SHAPE, put_sampler, random_parts

VOCABULARY, REVISION = 40, "c0ffee" + 34 * "0"


@pytest.fixture
def sampler_files(tmp_path: Path) -> Path:
    return put_sampler(tmp_path, *random_parts(VOCABULARY))


@pytest.fixture
def block():
    """Logits [3, 6, V] with tokens at -inf, ids, masks and padding."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(3, 6, VOCABULARY, generator=generator)
    logits[..., 3] = -torch.inf
    ids = torch.randint(4, VOCABULARY, (3, 6), generator=generator)
    present = torch.arange(6) < torch.tensor([[6], [4], [5]])
    return logits, ids, (torch.rand(3, 6, generator=generator) < 0.6) & present, present


def test_what_was_written_is_read(sampler_files: Path, block) -> None:
    content = json.loads((sampler_files / "config.json").read_text())
    assert content == {
        "format": "nld_trained_sampler", "version": 1, "features": 3 * COMPONENTS + 12, "layers": 2, "width": 16,
        "ffn": 24, "heads": 2, "attention": True, "top_embedding": True, "statistics": list(STATISTICS),
        "components": COMPONENTS, "vocab_size": VOCABULARY, "model_weights": None,
    }  # fmt: skip
    network, coordinates = random_parts(VOCABULARY)
    assert load_file(sampler_files / "model.safetensors").keys() == network.state_dict().keys() | {"coordinates"}
    assert sorted(path.name for path in sampler_files.iterdir()) == ["config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in sampler_files.iterdir()}) == 1, "whoever reads one may read the other"
    read = load_trained_sampler(sampler_files.parent, VOCABULARY)
    assert read.shape == SHAPE and torch.equal(read.coordinates, coordinates)
    assert all(torch.equal(read.network.state_dict()[name], weight) for name, weight in network.state_dict().items())
    whole = TrainedSampler(SHAPE, network, coordinates)
    torch.testing.assert_close(read.judge_block(*block), whole.judge_block(*block))
    assert not any(parameter.requires_grad for parameter in read.network.parameters())


def test_a_row_is_judged_as_if_alone_and_pieces_as_a_whole(sampler_files: Path, block, monkeypatch) -> None:
    read, (logits, ids, masked, present) = load_trained_sampler(sampler_files.parent, VOCABULARY), block
    said = read.judge_block(logits, ids, masked, present)
    assert said.shape == (3, 6) and said.dtype == torch.float32 and said.min() >= 0 and said.max() <= 1
    for row, length in enumerate((6, 4, 5)):
        alone = read.judge_block(
            logits[row : row + 1, :length], ids[row : row + 1, :length], masked[row : row + 1, :length]
        )
        torch.testing.assert_close(said[row : row + 1, :length], alone)
    monkeypatch.setattr("nld_train.hf.trained_sampler_nemotron_labs_diffusion.POSITIONS", 2)
    assert torch.equal(read.judge_block(logits, ids, masked, present), said)
    other = ids.masked_fill(masked, 5)
    assert torch.equal(read.judge_block(logits, other, masked, present), said), "what stands at a mask is not read"


def test_under_autocast_and_with_bfloat16_logits_the_network_is_in_float32(sampler_files: Path, block) -> None:
    read, (logits, ids, masked, present) = load_trained_sampler(sampler_files.parent, VOCABULARY), block
    plain = read.judge_block(logits.bfloat16(), ids, masked, present)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read.judge_block(logits.bfloat16(), ids, masked, present), plain)
    assert plain.dtype == torch.float32


def changed_config(**changes):
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def changed_weights(change):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def put(name: str, value: torch.Tensor):
    return changed_weights(lambda tensors: tensors.update({name: value}))


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


FAULTS = {
    "no folder": (shutil.rmtree, "no sampler/config.json in "),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "no sampler/config.json in "),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no sampler/model.safetensors in "),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "no UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff{"), "config.json is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "describes no trained sampler"),
    "another format": (changed_config(format="x"), "describes no trained sampler"),
    "a later version": (changed_config(version=2), "version=2; allowed: 1"),
    "other statistics": (changed_config(statistics=["p_1"]), "statistics=['p_1']; allowed: ['p_1', 'p_2'"),
    "another vocabulary": (changed_config(vocab_size=41), "vocab_size=41; allowed: 40; do: use its own model"),
    "a word for a number": (changed_config(layers="2"), "layers='2'; allowed: whole numbers"),
    "a number that is missing": (changed_config(components=None), "components=None; allowed: whole numbers"),
    "a negative number": (changed_config(ffn=-1), "ffn=-1; allowed: whole numbers"),
    "a number for a switch": (changed_config(attention=1), "attention=1; allowed: true, false"),
    "other features": (changed_config(features=25), "features=25 of components=4; allowed: 24"),
    "heads that do not fit": (changed_config(heads=3), "width=16, heads=3"),
    "endless layers": (changed_config(layers=10**9), "layers=1000000000; allowed:"),
    "fewer layers": (changed_config(layers=1), "is missing, or unknown"),
    "another width": (changed_config(width=18), "of shape ("),
    "cut weights": (cut, "model.safetensors cannot be read: "),
    "a strange tensor": (put("x", torch.ones(1)), "['x'] is missing, or unknown"),
    "no coordinates": (changed_weights(lambda tensors: tensors.pop("coordinates")), "['coordinates'] is missing"),
    "coordinates of fewer tokens": (put("coordinates", torch.ones(39, 4).half()), "coordinates of shape (39, 4)"),
    "wide coordinates": (put("coordinates", torch.ones(40, 4)), "coordinates in torch.float32; allowed: floats"),
    "whole numbers": (put("head.bias", torch.ones(1, dtype=torch.int64)), "head.bias in torch.int64"),
    "NaN": (put("head.bias", torch.tensor([torch.nan])), "head.bias holds NaN or infinity"),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_one_line(sampler_files: Path, damage, message: str) -> None:
    damage(sampler_files)
    with pytest.raises(InputError) as caught:
        load_trained_sampler(sampler_files.parent, VOCABULARY)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nobody/nothing", "/not/there/at/all"])
def test_a_source_that_is_not_there_is_one_line(source: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"^no sampler/config.json in {source}; allowed: [^\n]*$"):
        load_trained_sampler(source, VOCABULARY)


def test_what_would_not_be_read_is_not_written(sampler_files: Path, tmp_path: Path) -> None:
    network, coordinates = random_parts(VOCABULARY)
    with pytest.raises(InputError, match="an empty folder"):
        save_trained_sampler(sampler_files, SHAPE, network.state_dict(), coordinates)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="coordinates in torch.float32"):
        save_trained_sampler(tmp_path / "other", SHAPE, network.state_dict(), coordinates.float())
    state = network.state_dict() | {"head.bias": torch.tensor([torch.inf])}
    with pytest.raises(InputError, match="head.bias holds NaN or infinity"):
        save_trained_sampler(tmp_path / "other", SHAPE, state, coordinates)
    assert not list((tmp_path / "other").iterdir())


@pytest.fixture
def read_model(tiny_model, tmp_path: Path) -> NemotronLabsDiffusionModel:
    """A model as `from_pretrained` reads it, with a sampler beside it."""
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "saved")
    put_sampler(tmp_path / "saved", *random_parts(VOCABULARY))
    return NemotronLabsDiffusionModel.from_pretrained(tmp_path / "saved")


def test_the_model_decodes_with_the_sampler_beside_its_weights(read_model, random_ids) -> None:
    prompt, before = random_ids(2, 5), read_model.state_dict().keys()
    plain, forwards = read_model.generate(prompt, 16, 8, threshold=0.3)
    found, fewer = read_model.generate(prompt, 16, block_length=8, sampler=True, threshold=0.3)
    assert found.shape == plain.shape and forwards != fewer
    same, _ = read_model.block_diffusion_generate(prompt, 16, 8, threshold=0.3, sampler=True)
    assert torch.equal(found, same) and read_model.trained_sampler() is read_model.trained_sampler()
    assert read_model.state_dict().keys() == before, "the sampler is no weight of the model"
    read_model.to(torch.bfloat16).generate(prompt, 16, 8, sampler=True)
    assert {weight.dtype for weight in read_model.trained_sampler().network.parameters()} == {torch.float32}


def test_requests_that_no_sampler_can_meet_are_refused(read_model, tiny_model, random_ids) -> None:
    prompt = random_ids(1, 5)
    with pytest.raises(InputError, match="a trained sampler at temperature=0.7; allowed: temperature=0"):
        read_model.generate(prompt, 16, 8, temperature=0.7, sampler=True)
    with pytest.raises(InputError, match="generate\\(sampler\\) without block_length"):
        read_model.generate(prompt, max_new_tokens=16, sampler=True)
    with pytest.raises(InputError, match="read from no folder"):
        tiny_model().generate(prompt, 16, 8, sampler=True)
    shutil.rmtree(Path(read_model.name_or_path) / "sampler")
    with pytest.raises(InputError, match="no sampler/config.json in .*; do: export the sampler too, or decode without"):
        read_model.generate(prompt, 16, 8, sampler=True)


LOADED_ELSEWHERE = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
prompt, found = torch.tensor([[5, 6, 7], [0, 8, 9]]), []
for name, kind in ((sys.argv[1], AutoModel), ("tiny/model", AutoModel), (sys.argv[1], AutoModelForCausalLM)):
    model = kind.from_pretrained(name, trust_remote_code=True)
    ids, forwards = model.generate(prompt, 16, block_length=8, threshold=0.3, sampler=True)
    found.append((ids.tolist(), forwards))
assert found[0] == found[1] == found[2]
strangers = [name for name in sys.modules if name.split(".")[0] in ("nld_train", "megatron")]
assert not strangers, strangers
print(found[0])
"""


@pytest.mark.slow
def test_an_export_decodes_with_its_sampler_without_this_package(read_model, tmp_path: Path) -> None:
    """From its folder, and from the cache of a hub, which is not asked."""
    folder, prompt = Path(read_model.name_or_path), torch.tensor([[5, 6, 7], [0, 8, 9]])
    for file in exported_code_files():
        shutil.copy(file, folder)
    names = {
        "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
        "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
        "AutoModelForCausalLM": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionForCausalLM",
    }
    content = json.loads((folder / "config.json").read_text()) | {"auto_map": names}
    (folder / "config.json").write_text(json.dumps(content))
    stored = tmp_path / "hub" / "models--tiny--model"
    shutil.copytree(folder, stored / "snapshots" / REVISION)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(REVISION)
    places = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    alone = {**places, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", LOADED_ELSEWHERE, folder],
        cwd=tmp_path, env=os.environ | alone, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ids, forwards = read_model.generate(prompt, 16, 8, threshold=0.3, sampler=True)
    assert ran.stdout.strip() == str((ids.tolist(), forwards))

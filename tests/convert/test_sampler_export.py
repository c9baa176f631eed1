"""A sampler's network beside an export: made from a checkpoint of random numbers, read by the code that travels."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nld_train.cli import main
from nld_train.config import DiffusionConfig
from nld_train.convert.hf_folder import HFWeights
from nld_train.convert.sampler_export import best_step, export_sampler, read_network
from nld_train.convert.torch_dist import TensorRange, write_torch_dist
from nld_train.convert.weight_table import NLD
from nld_train.errors import UserError
from nld_train.hf.sampler_network_nemotron_labs_diffusion import SamplerNetwork
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import load_trained_sampler
from nld_train.objective_sections import SamplerConfig
from nld_train.objectives.sampler import sampler_shape
from nld_train.recipe import run_to_json
from nld_train.run_folder.checkpoints import checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.paths import TRACKER, checkpoints_folder, step_folder
from nld_train.trajectories.embedding_pca import fit_embedding_pca
from nld_train.trajectories.stored_parts import read_pca, write_pca
from tests.convert.conftest import export
from tests.sampler_folder import write_collection

SHAPE = SamplerConfig(layers=1, width=8, ffn=12, heads=2, patience=0)
AUCS = {10: 0.7, 20: 0.9, 30: 0.8}


@pytest.fixture
def model(random_run: Path, tmp_path: Path) -> Path:
    """An export that a sampler may be put beside."""
    return export(random_run, tmp_path / "hf", dtype=torch.float32)


@pytest.fixture
def sampler_run(random_run: Path, model: Path, tmp_path: Path) -> Path:
    """The output folder of a sampler's run, with random networks at three steps, for trajectories of `model`."""
    collected = write_collection(tmp_path / "trajectories")
    write_pca(collected, fit_embedding_pca(HFWeights(model).read(NLD.embedding)))
    base = read_frozen_run(random_run)
    output = tmp_path / "run"
    output.mkdir()
    own = {"diffusion": DiffusionConfig(alpha=0, block_size=8), "data": replace(base.data, blend=(str(collected),))}
    run = replace(base, name="sampler", output=str(output), init=None, sampler=SHAPE, **own)
    (output / "run.json").write_text(run_to_json(run))
    for step in AUCS:
        torch.manual_seed(step)
        network = SamplerNetwork(sampler_shape(SHAPE, read_pca(collected).coordinates.shape[1])).state_dict()
        pieces = [
            TensorRange(
                f"network.{name}", tuple(each.shape), (0,) * each.dim(), tuple(each.shape), each.dtype, each.clone
            )
            for name, each in network.items()
        ]
        write_torch_dist(step_folder(output, step), pieces, {})
        folder = step_folder(output, step)
        write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    (checkpoints_folder(output) / TRACKER).write_text("30")
    entries = [{"step": step, "kind": "validation", "AUC": auc} for step, auc in ({0: 0.99, 25: 0.95} | AUCS).items()]
    (output / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return output


def test_the_best_kept_step_is_exported_and_a_better_one_that_is_gone_is_named(
    sampler_run: Path, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr("sys.argv", ["nld", "convert", "sampler", str(sampler_run), "--to", str(model)])
    with caplog.at_level(logging.INFO):
        assert main() == 0
    assert "step 25 was better (AUC 0.9500), and is not kept" in caplog.text and "of step 20 of" in caplog.text
    run = read_frozen_run(sampler_run)
    found = load_trained_sampler(model, run.model.vocab_size)
    pca = read_pca(Path(run.data.blend[0]))
    want = read_network(step_folder(sampler_run, 20), sampler_shape(SHAPE, pca.coordinates.shape[1]))
    assert all(torch.equal(found.network.state_dict()[name], each) for name, each in want.items())
    assert torch.equal(found.coordinates, pca.coordinates)
    assert set(load_file(model / "sampler" / "model.safetensors")) == {*want, "coordinates"}


def test_another_step_and_overwriting(sampler_run: Path, model: Path) -> None:
    export_sampler(sampler_run, model, 30, overwrite=False)
    with pytest.raises(UserError, match="exists already"):
        export_sampler(sampler_run, model, None, overwrite=False)
    export_sampler(sampler_run, model, None, overwrite=True)
    assert sorted(path.name for path in (model / "sampler").iterdir()) == ["config.json", "model.safetensors"]


def test_a_run_without_evaluations_gives_its_newest(sampler_run: Path, caplog) -> None:
    (sampler_run / "metrics.jsonl").unlink()
    assert best_step(sampler_run) == 30 and "no checkpoint was evaluated" in caplog.text


def test_another_models_export_is_refused(sampler_run: Path, model: Path) -> None:
    collected = Path(read_frozen_run(sampler_run).data.blend[0])
    own = HFWeights(model).read(NLD.embedding)
    for other in (own.flip(0), own[:-1], own[:, :-1]):
        write_pca(collected, fit_embedding_pca(other))
        with pytest.raises(UserError, match="another model than the one whose trajectories"):
            export_sampler(sampler_run, model, None, overwrite=False)
        assert not (model / "sampler").exists()


def test_other_folders_are_refused(sampler_run: Path, random_run: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no sampler's run"):
        export_sampler(random_run, model, None, overwrite=False)
    with pytest.raises(UserError, match="config.json"):
        export_sampler(sampler_run, tmp_path / "nowhere", None, overwrite=False)
    with pytest.raises(UserError, match="--step"):
        export_sampler(sampler_run, model, 11, overwrite=False)


def test_a_samplers_run_is_no_model(sampler_run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (sampler_run / "model.json").write_text(json.dumps(json.loads((sampler_run / "run.json").read_text())["model"]))
    monkeypatch.setattr("sys.argv", ["nld", "convert", "export", str(sampler_run), "--to", str(tmp_path / "new")])
    assert main() == 2
    assert "is a sampler's run, which holds no model" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_numbers_that_are_none_and_other_networks_are_refused(sampler_run: Path, model: Path) -> None:
    frozen = json.loads((sampler_run / "run.json").read_text())
    frozen["sampler"]["ffn"] = 16
    (sampler_run / "run.json").write_text(json.dumps(frozen))
    with pytest.raises(UserError, match="copy it again"):
        export_sampler(sampler_run, model, None, overwrite=False)
    assert not (model / "sampler").exists()

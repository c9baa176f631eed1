"""The start checks of a drafter's run: the model that it drafts for, and an adapter to start from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.convert.weight_table import adapter_mappings
from nld_train.errors import UserError
from nld_train.peft_names import CONFIG, WEIGHTS
from nld_train.start.output_folder import open_output
from tests.saved import save_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A drafter's run beside the output of the model's."""
    base = recipe.load_recipe("tiny_stage2_joint", [f"output={tmp_path}/base", "init=none"])
    open_output(base)
    save_checkpoint(base.output, 20)
    return recipe.load_recipe("tiny_drafter", [f"output={tmp_path}/drafter", f"init={base.output}"])


def starting_from(run: RunConfig, folder: Path) -> RunConfig:
    assert run.drafter is not None
    return replace(run, drafter=replace(run.drafter, adapter=str(folder)))


def test_the_model_must_be_there_at_every_start(run: RunConfig) -> None:
    assert open_output(run) is None
    save_checkpoint(run.output, 10)
    assert open_output(run) == 10
    assert run.init is not None
    shutil.rmtree(Path(run.init) / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint in"):
        open_output(run)


def test_a_drafters_run_is_no_model_to_start_from(run: RunConfig, tmp_path: Path) -> None:
    open_output(run)
    save_checkpoint(run.output, 10)
    with pytest.raises(UserError, match="is a drafter's run: its checkpoints hold no model"):
        open_output(replace(run, init=run.output, output=str(tmp_path / "other")))


def test_another_drafter_is_another_run(run: RunConfig) -> None:
    open_output(run)
    save_checkpoint(run.output, 10)
    assert run.drafter is not None
    with pytest.raises(UserError, match="drafter.tau was 3.0, is 2.0"):
        open_output(replace(run, drafter=replace(run.drafter, tau=2.0)))


def test_an_adapter_to_start_from_must_be_there_and_of_this_rank_and_scale(run: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(UserError, match="a PEFT folder with"):
        open_output(starting_from(run, folder))
    folder.mkdir()
    (folder / WEIGHTS).touch()
    (folder / CONFIG).write_text(json.dumps({"r": 128, "lora_alpha": 256}))
    with pytest.raises(UserError, match="lora_alpha=256; allowed: drafter.rank=128 and drafter.alpha=512"):
        open_output(starting_from(run, folder))
    (folder / CONFIG).write_text(json.dumps({"r": 128, "lora_alpha": 512}))
    with pytest.raises(UserError, match="is shorter than its header"):
        open_output(starting_from(run, folder))
    tensors = {part.name: torch.zeros(part.shape) for unit in adapter_mappings(run.model, 128) for part in unit.parts}
    save_file(tensors, folder / WEIGHTS)
    assert open_output(starting_from(run, folder)) is None
    name = sorted(tensors)[0]
    tensors[name][0, 0] = torch.inf
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite numbers"):
        open_output(starting_from(run, folder))

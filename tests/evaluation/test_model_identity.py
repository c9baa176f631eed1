"""What tells two evaluations of different models apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.errors import UserError
from nld_train.evaluation.evaluated_model import ModelChoice, model_identity


def test_an_identity_changes_with_the_weights_and_the_dtype_alone(folder: Path, tmp_path: Path) -> None:
    before = model_identity(ModelChoice(folder))
    moved = folder.with_name("elsewhere")
    moved.symlink_to(folder)
    assert model_identity(ModelChoice(moved)) == before and before["model"].endswith(folder.name)
    assert model_identity(ModelChoice(folder, dtype=torch.float32)) == before | {"dtype": "float32"}
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # trained on: the same names, shapes and sizes
    weights.write_bytes(content)
    after = model_identity(ModelChoice(folder))
    assert after.pop("weights") != before.pop("weights") and after == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": Path("nowhere")}, "no folder nowhere"),
        ({"step": 3}, "runs alone have steps"),
        ({"adapter": Path("none")}, "no file none"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, change, said) -> None:
    with pytest.raises(UserError, match=said):
        model_identity(replace(ModelChoice(folder), **change))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file .*model.safetensors"):
        model_identity(ModelChoice(folder))

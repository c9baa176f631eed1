"""Checkpoints that real ranks saved: out to Hugging Face and back, from every layout, and training from an import."""

from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.verify import compare_with_checkpoint
from nld_train.convert.weight_table import NLD, weight_mappings
from tests.convert.conftest import export, imported
from tests.distributed.ranks import logged

pytestmark = pytest.mark.megatron
LAYOUTS = ["start", "tensor2", "pipeline2", "tensor2_pipeline2"]


def same_weights(left: Path, right: Path) -> bool:
    one, other = open_checkpoint_source(left), open_checkpoint_source(right)
    assert one.model == other.model
    return all(
        torch.equal(one.weights.read(unit, torch.float32), other.weights.read(unit, torch.float32))
        for unit in weight_mappings(one.model, NLD)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_to_hugging_face_and_back_is_bit_exact(
    saved: dict[str, RunConfig], layout: str, tmp_path: Path
) -> None:
    output = Path(saved[layout].output)
    folder = export(output, tmp_path / "hf", dtype=torch.float32)
    assert same_weights(output, imported(folder, tmp_path / "back"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layout_gives_the_same_file(saved: dict[str, RunConfig], tmp_path: Path, dtype: torch.dtype) -> None:
    files = [
        (export(Path(saved[layout].output), tmp_path / layout, dtype=dtype) / "model.safetensors").read_bytes()
        for layout in LAYOUTS
    ]
    assert all(content == files[0] for content in files[1:])


@pytest.mark.parametrize("layout", ["tensor2", "tensor2_pipeline2"])
def test_the_ranks_really_cut_the_tensors(saved: dict[str, RunConfig], layout: str) -> None:
    source = open_checkpoint_source(Path(saved[layout].output))
    assert len(source.weights.row_ranges(weight_mappings(source.model, NLD)[0])) == 2


def test_an_export_verifies(saved: dict[str, RunConfig], tmp_path: Path) -> None:
    output = Path(saved["tensor2_pipeline2"].output)
    findings = compare_with_checkpoint(open_checkpoint_source(output), export(output, tmp_path / "hf"))
    assert [finding.what for finding in findings].count("logits, diffusion") == 2


def test_a_run_from_an_import_has_the_validation_loss_of_the_run_it_came_from(saved: dict[str, RunConfig]) -> None:
    last = logged(saved["start"], "validation")[-1]
    first = logged(saved["from_import"], "validation")[0]
    assert first["step"] == 0
    for name in ("AR loss", "diffusion loss", "mask ratio"):
        assert first[name] == pytest.approx(last[name], rel=1e-6), name

"""A Ministral-3 that stock transformers made and saved: imported and exported, it computes the same logits."""

import shutil
from pathlib import Path

import pytest
import torch

from nld_train.convert.exported_code import ExportedModel
from nld_train.convert.hf_folder import open_hf_folder
from nld_train.convert.reference_network import ProbeRow
from tests.convert.conftest import export, imported

pytestmark = pytest.mark.slow
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def stock(tied: bool) -> torch.nn.Module:
    from transformers import Ministral3Config, Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    text = Ministral3Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters=ROPE,
        tie_word_embeddings=tied,
    )
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    config = Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    model = Mistral3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_stay_those_of_stock_transformers(tied: bool, prepared: Path, tmp_path: Path) -> None:
    model = stock(tied)
    folder = tmp_path / "ministral"
    shutil.copytree(prepared / "tokenizer", folder)
    model.save_pretrained(folder)
    out = export(imported(folder, tmp_path / "out", text_only=True), tmp_path / "hf", dtype=torch.float32)
    ids = torch.randint(400, (48,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits[0]
    described, weights = open_hf_folder(out)
    found = ExportedModel(out, described, weights, described.model.layers).ar_logits(ProbeRow(ids, ids, 16, 0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

"""A tiny model with random weights, in float64 so that no two ways of computing a token can disagree by rounding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, NemotronLabsDiffusionConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

MASK = 3


@pytest.fixture(scope="session")
def make_model():
    """Makes a model. Wide weights, so that the next token depends on the whole context."""

    def make(vocab_size: int, seed: int = 1, dtype=torch.float64, **changes) -> NemotronLabsDiffusionModel:
        rope = PUBLISHED_ROPE | {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16}
        torch.manual_seed(seed)
        config = NemotronLabsDiffusionConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rope_parameters=rope,
            **{"mask_token_id": MASK, "eos_token_id": None} | changes,
        )  # fmt: skip
        model = NemotronLabsDiffusionModel(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                noise = torch.randn_like(weight)
                weight.copy_(1 + 0.1 * noise if "norm" in name else noise if "embed" in name else 0.25 * noise)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def small(make_model) -> NemotronLabsDiffusionModel:
    """Six tokens: drafts agree often enough that every length of acceptance occurs."""
    return make_model(6)


@pytest.fixture(scope="session")
def ragged() -> list[list[int]]:
    """200 random prompts of 1 to 20 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 21, (200,), generator=generator).tolist()
    return [torch.randint(0, 6, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def folder(make_model, prepared: Path, tmp_path: Path) -> Path:
    """A checkpoint folder of a model with the 400 tokens of a real tokenizer."""
    model = make_model(400, dtype=torch.float32, mask_token_id=100, eos_token_id=2)
    content = model.config.to_dict() | {"architectures": ["NemotronLabsDiffusionModel"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    for file in (prepared / "tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path

"""A tiny model with random weights, in float64 so that no two ways of computing a token can disagree by rounding."""

import pytest
import torch

from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, NemotronLabsDiffusionConfig
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel

MASK = 3


@pytest.fixture(scope="session")
def tiny_config():
    """Makes the configuration; the query scale is at work from position 16 on."""

    def make(**changes) -> NemotronLabsDiffusionConfig:
        settings = {
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "mask_token_id": MASK,
            "eos_token_id": None,
            "rope_parameters": PUBLISHED_ROPE
            | {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16},
        }
        return NemotronLabsDiffusionConfig(**settings | changes)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """Makes the model. Wide weights, so that the next token depends on the whole context."""

    def make(seed: int = 0, dtype=torch.float64, **changes) -> NemotronLabsDiffusionModel:
        torch.manual_seed(seed)
        model = NemotronLabsDiffusionModel(tiny_config(**changes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 1.0 if "embed" in name else 0.25
                parameter.copy_(
                    1 + 0.1 * torch.randn_like(parameter) if "norm" in name else spread * torch.randn_like(parameter)
                )
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def model(tiny_model):
    return tiny_model()


@pytest.fixture
def random_ids():
    """Makes token ids [rows, length], none of them the mask."""

    def make(rows: int, length: int, seed: int = 0, vocabulary: int = 40):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(MASK + 1, vocabulary, (rows, length), generator=generator)

    return make

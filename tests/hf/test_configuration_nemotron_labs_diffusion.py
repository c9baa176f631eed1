"""config.json: the published numbers, and one line for everything that the modeling files do not compute."""

import pytest
import torch

from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, NemotronLabsDiffusionConfig

# As the contract writes it, older spellings included.
PUBLISHED_14B = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "hidden_size": 5120,
    "intermediate_size": 16384,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "torch_dtype": "bfloat16",
    "rope_parameters": PUBLISHED_ROPE | {"rope_theta": 1e9},
    "rope_scaling": PUBLISHED_ROPE | {"rope_theta": 1e9},
    "rope_theta": 1e9,
    "eos_token_id": 2,
}


def test_the_published_keys_are_read_with_their_older_spellings():
    config = NemotronLabsDiffusionConfig(**PUBLISHED_14B)
    assert (config.rope_parameters["rope_theta"], config.rope_parameters["llama_4_scaling_beta"]) == (1e9, 0.1)
    assert (config.dtype, config.head_dim, config.eos_token_id) == (torch.bfloat16, 128, 2)
    assert (config.mask_token_id, config.block_size, config.dlm_paradigm) == (100, 32, "bidirectional")


def test_rotary_numbers_under_the_older_name_alone_are_not_ignored():
    old = {key: value for key, value in PUBLISHED_ROPE.items() if key != "rope_theta"} | {"factor": 4.0}
    config = NemotronLabsDiffusionConfig(rope_scaling=old, rope_theta=5e5, max_position_embeddings=65536)
    assert (config.rope_parameters["factor"], config.rope_parameters["rope_theta"]) == (4.0, 5e5)


def test_rope_parameters_win_over_the_older_name():
    config = NemotronLabsDiffusionConfig(
        rope_parameters=PUBLISHED_ROPE, rope_scaling=PUBLISHED_ROPE | {"rope_theta": 5e5, "factor": 2.0}
    )
    assert (config.rope_parameters["rope_theta"], config.rope_parameters["factor"]) == (1e6, 16.0)


def test_a_configuration_survives_its_own_dictionary():
    config = NemotronLabsDiffusionConfig(**PUBLISHED_14B)
    again = NemotronLabsDiffusionConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_the_published_settings_cause_no_warning(caplog, capfd):
    NemotronLabsDiffusionConfig(**PUBLISHED_14B)
    assert caplog.text == "" and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dlm_paradigm": "sbd_block_diff"}, "dlm_paradigm='sbd_block_diff'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"mask_token_id": 131072}, "mask_token_id=131072"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_type='default'"),
        (
            {"rope_parameters": {key: value for key, value in PUBLISHED_ROPE.items() if key != "beta_fast"}},
            "without beta_fast",
        ),
    ],
)
def test_what_is_not_computed_is_refused_in_one_line(changes, named):
    with pytest.raises(ValueError, match=named) as caught:
        NemotronLabsDiffusionConfig(**changes)
    assert "\n" not in str(caught.value) and "do: " in str(caught.value)


@pytest.mark.parametrize("paradigm", ["bidirectional", "autoregressive", "block_diff"])
def test_the_names_that_loaders_accept_are_accepted(paradigm):
    assert NemotronLabsDiffusionConfig(dlm_paradigm=paradigm).dlm_paradigm == paradigm

"""Configuration of the tri-mode model: what config.json of a checkpoint says. This file travels with every export."""

from typing import Any

import transformers

if int(transformers.__version__.split(".")[0]) < 5:
    # Said here, before older versions fail at the next line without a reason.
    raise ImportError(
        f"transformers {transformers.__version__}; allowed: 5.0 and newer; do: pip install --upgrade transformers"
    )

from transformers import PreTrainedConfig

ARCHITECTURE = "NemotronLabsDiffusionModel"
PARADIGMS = ("bidirectional", "autoregressive", "block_diff")
# YaRN and query scale of the published 3B and 8B; the 14B has rope_theta 1e9.
PUBLISHED_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ROPE_KEYS = frozenset(PUBLISHED_ROPE)


class InputError(ValueError):
    """What a user gave cannot be used: what was got, what is allowed, what to do."""

    def __init__(self, got: str, allowed: str, do: str) -> None:
        super().__init__(f"{got}; allowed: {allowed}; do: {do}")
        self.got, self.allowed, self.do = got, allowed, do


def require_input(ok: bool, got: str, allowed: str, do: str) -> None:
    """Raise InputError unless `ok`."""
    if not ok:
        raise InputError(got, allowed, do)


class NemotronLabsDiffusionConfig(PreTrainedConfig):
    """Shape, special ids and rotary numbers; the defaults are those of the published 8B.

    `dlm_paradigm` is how `forward` attends where its caller does not say: causally for "autoregressive", without a
    mask for "bidirectional" and "block_diff" (as AutoModelForCausalLM always causally). `ar_loss_weight` and
    `dlm_loss_weight` weigh the two terms of the loss that `labels` give: the second is null in a published config.json,
    and then the loss is the causal one alone. `rope_scaling`, the older name, is read where there is no
    `rope_parameters`.

    Raises: InputError, a ValueError of one line, for what the modeling files do not compute.
    """

    model_type = "nemotron_labs_diffusion"
    keys_to_ignore_at_inference = ["past_key_values"]
    ignore_keys_at_rope_validation = {"llama_4_scaling_beta"}

    def __init__(
        self,
        vocab_size: int = 131_072,
        hidden_size: int = 4096,
        intermediate_size: int = 14_336,
        num_hidden_layers: int = 34,
        num_attention_heads: int = 32,
        num_key_value_heads: int = 8,
        head_dim: int = 128,
        hidden_act: str = "silu",
        max_position_embeddings: int = 262_144,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        use_cache: bool = False,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        attention_dropout: float = 0.0,
        sliding_window: int | None = None,
        rope_parameters: dict[str, Any] | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 11,
        mask_token_id: int = 100,
        block_size: int = 32,
        dlm_paradigm: str = "bidirectional",
        ar_loss_weight: float | None = 1.0,
        dlm_loss_weight: float | None = None,
        dp_varying_mask_ratio: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.attention_dropout = attention_dropout
        self.sliding_window = sliding_window
        older = kwargs.pop("rope_scaling", None)
        self.rope_parameters = dict(rope_parameters or older or PUBLISHED_ROPE)
        self.mask_token_id = mask_token_id
        self.block_size = block_size
        self.dlm_paradigm = dlm_paradigm
        self.ar_loss_weight = ar_loss_weight
        self.dlm_loss_weight = dlm_loss_weight
        self.dp_varying_mask_ratio = dp_varying_mask_ratio
        # transformers moves a top-level rope_theta into rope_parameters, where it is missing there.
        super().__init__(**kwargs)
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        check_configuration(self)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json. It names the published architecture whichever class saved the model, because
        that name is what other programs look up.
        """
        return super().to_dict() | {"architectures": [ARCHITECTURE]}


def check_configuration(config: NemotronLabsDiffusionConfig) -> None:
    """Raises: InputError."""
    rope = config.rope_parameters
    require_input(
        config.dlm_paradigm in PARADIGMS,
        f"dlm_paradigm={config.dlm_paradigm!r}",
        ", ".join(PARADIGMS),
        'write "bidirectional" into config.json: training names do not belong into an export',
    )
    require_input(not config.tie_word_embeddings, "tie_word_embeddings=true", "false", "write the head out as a tensor")
    require_input(rope["rope_type"] == "yarn", f"rope_type={rope['rope_type']!r}", "yarn", "correct rope_parameters")
    missing = ROPE_KEYS - rope.keys()
    require_input(
        not missing,
        f"rope_parameters without {', '.join(sorted(missing))}",
        "all of " + ", ".join(sorted(ROPE_KEYS)),
        "add them to config.json",
    )
    check_mask_token(config.mask_token_id, config.vocab_size)
    for name, value, computed in (
        ("hidden_act", config.hidden_act, "silu"),
        ("sliding_window", config.sliding_window, None),
        ("attention_dropout", config.attention_dropout, 0.0),
    ):
        require_input(value == computed, f"{name}={value!r}", repr(computed), "correct config.json")


def check_mask_token(mask_token_id: int, vocab_size: int) -> None:
    """Raises: InputError for a mask id outside the vocabulary."""
    require_input(
        0 <= mask_token_id < vocab_size,
        f"mask_token_id={mask_token_id}",
        f"ids below vocab_size={vocab_size}",
        "use the mask id of the tokenizer",
    )

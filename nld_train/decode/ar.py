"""AR decoding: left to right, one token per forward."""

from typing import Any

from nld_train.decode.result import Decoded
from nld_train.decode.run import Prompts, generate_batch
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.decoding_nemotron_labs_diffusion import decode_ar
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Streamer


def generate_ar(
    model: Any,
    prompts: Prompts,
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch. Returns: an answer to each prompt, in their order.

    Raises: UserError for a request that the model cannot serve.
    """
    return generate_batch(
        model, prompts, settings, streamer, complete, lambda rows, sampler: decode_ar(model, rows, sampler)
    )

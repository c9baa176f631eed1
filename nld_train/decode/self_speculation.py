"""Linear self-speculation: one forward drafts a block by denoising, the next one verifies it left to right."""

from collections.abc import Sequence
from typing import Any

from nld_train.decode.result import Decoded
from nld_train.decode.run import generate_batch
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.decoding_nemotron_labs_diffusion import decode_linear_speculation
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Generations, Streamer
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler


def generate_self_speculation(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch. Returns: an answer to each prompt, in their order.

    Raises: UserError for a request that the model cannot serve.
    """
    mask, length = model.config.mask_token_id, settings.block_length

    def loop(rows: Generations, sampler: Sampler) -> None:
        decode_linear_speculation(model, rows, sampler, length, mask, settings.draft_threshold)

    return generate_batch(model, prompts, settings, streamer, complete, loop)

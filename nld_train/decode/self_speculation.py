"""Linear self-speculation: one forward drafts a block by denoising, one verifies it left to right."""

from collections.abc import Sequence
from typing import Any

from nld_train.config import DecodeConfig
from nld_train.decode.result import Decoded
from nld_train.decode.run import run
from nld_train.hf.decoding_nemotron_labs_diffusion import decode_linear
from nld_train.hf.rows_nemotron_labs_diffusion import Rows, Streamer
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler


def decode(
    model: Any, prompts: Sequence[Sequence[int]], settings: DecodeConfig, streamer: Streamer | None = None
) -> list[Decoded]:
    """Decode token lists as one batch. Raises: UserError."""
    mask, length = model.config.mask_token_id, settings.block_length

    def loop(rows: Rows, sampler: Sampler) -> None:
        decode_linear(model, rows, sampler, length, mask, settings.draft_threshold)

    return run(model, prompts, settings, streamer, loop)

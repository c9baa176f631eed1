"""Block diffusion: a block of masks is filled in over a few forwards, then the next block begins."""

from typing import Any

from nld_train.decode.result import Decoded
from nld_train.decode.run import Prompts, generate_batch, user_errors
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.blocks_nemotron_labs_diffusion import DenoisingPlan
from nld_train.hf.decoding_nemotron_labs_diffusion import decode_diffusion
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Streamer, check_whole_blocks


def generate_diffusion(
    model: Any,
    prompts: Prompts,
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch. Returns: an answer to each prompt, in their order.

    Raises: UserError for a request that the model cannot serve.
    """
    with user_errors():
        check_whole_blocks(settings.max_new_tokens, settings.block_length)
        plan = denoising_plan(model, settings)
    return generate_batch(
        model, prompts, settings, streamer, complete, lambda rows, sampler: decode_diffusion(model, rows, sampler, plan)
    )


def denoising_plan(model: Any, settings: DecodeConfig) -> DenoisingPlan:
    """How the settings fill a block. Raises: InputError where they do not go together, or the model has no trained
    sampler to fill it with."""
    return DenoisingPlan(
        settings.block_length,
        model.config.mask_token_id,
        settings.threshold,
        settings.forwards_per_block,
        settings.revise,
        sampler=model.trained_sampler() if settings.sampler else None,
    )

"""Linear self-speculation: one forward drafts a block by denoising, the next one verifies it left to right."""

from collections.abc import Callable
from typing import Any

from nld_train.decode.result import Decoded
from nld_train.decode.run import Prompts, generate_batch
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.decoding_nemotron_labs_diffusion import DraftPlan, DraftRound, decode_linear_speculation
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Streamer


def generate_self_speculation(
    model: Any,
    prompts: Prompts,
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
    observe: Callable[[DraftRound], None] | None = None,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch. Returns: an answer to each prompt, in their order.

    observe: is told of every draft and its verification.

    Raises: UserError for a request that the model cannot serve.
    """
    plan = DraftPlan(settings.block_length, model.config.mask_token_id, settings.draft_threshold, observe)
    return generate_batch(
        model,
        prompts,
        settings,
        streamer,
        complete,
        lambda rows, draws: decode_linear_speculation(model, rows, draws, plan),
    )

"""Infilling: the tokens of a gap, given the text before it and the beginning of the text behind it.

What a block model can see. In training a noisy token sees the noisy tokens of its own block, in both directions, and
the clean tokens of the blocks before; it never sees a later block. So the text behind a gap can be seen from inside the
gap's own block alone. One block is laid out behind the clean text before the gap, which is read causally and cached:

    [text before, clean] [gap: n masks | the first block_length - n tokens behind it, as they are]

All positions of the block see one another and the text before. The rest of the text behind the gap is seen by nobody.
Every token of the gap is denoised, the first one too: the causal forward, which would give it as the seed of a block,
knows nothing of what follows. With nothing before the gap the block is the text's first, as in training. A block longer
than the block size of training is allowed, and is outside of what the model was trained on.

Letters: B gaps, n tokens of a gap, L positions of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nld_train.decode.diffusion import denoising_plan
from nld_train.decode.result import Decoded
from nld_train.decode.run import decode_rows, generation_limits, user_errors
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import require
from nld_train.hf.blocks_nemotron_labs_diffusion import DenoisingPlan, DiffusionBlocks
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import adapters_switched, fill_blocks, prefill_prompts
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Generations, Streamer, check_generation_request
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler


@dataclass(frozen=True)
class TextGap:
    """The token ids around a gap."""

    before: Sequence[int]  # none where the text begins with the gap
    after: Sequence[int]

    def seen(self, length: int, block_length: int) -> list[int]:
        """The tokens behind a gap of `length` that fit into its block."""
        return list(self.after[: block_length - length])


def infill_gaps(
    model: Any,
    gaps: Sequence[TextGap],
    length: int,
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
) -> list[Decoded]:
    """Fill gaps as one batch, by block diffusion: threshold, budget, revision, sampler and the draws are those of the
    settings. Returns: the tokens of every gap, in their order; the text before it is the prompt.

    length: n, for every gap. An end-of-text id cuts the gap behind it, and so does `complete`: the answer is up to n
    tokens. The token behind the gap keeps its position all the same. The settings' max_new_tokens is not read.
    Raises: UserError for a request that the model cannot serve.
    """
    limits = generation_limits(model.config, replace(settings, max_new_tokens=max(length, 1)), complete)
    check_gaps(gaps, length, settings)
    with user_errors():
        texts = [[*gap.before, *gap.seen(length, settings.block_length)] for gap in gaps]
        check_generation_request(model.config, texts, limits)
        plan = denoising_plan(model, settings)
    block = start_gaps(gaps, length, plan)
    rows = Generations([gap.before for gap in gaps], limits, streamer)
    return decode_rows(model, rows, settings, lambda rows, sampler: decode_gaps(model, rows, sampler, block, length))


def check_gaps(gaps: Sequence[TextGap], length: int, settings: DecodeConfig) -> None:
    """Raises: UserError for gaps that no block can hold with a token behind them."""
    most = settings.block_length - 1
    require(
        1 <= length <= most,
        f"a gap of {length} tokens with block_length={settings.block_length}",
        f"1 to {most} tokens, so that the block holds a token behind the gap",
        "shorten the gap, or raise block_length",
    )
    for number, gap in enumerate(gaps):
        require(len(gap.after) > 0, f"gap {number} with nothing behind it", "a text behind it", "generate without it")
    budget = settings.max_thinking_tokens
    require(budget is None, f"max_thinking_tokens={budget} in a gap", "none", "leave it out: a gap holds no thinking")


def start_gaps(gaps: Sequence[TextGap], length: int, plan: DenoisingPlan) -> DiffusionBlocks:
    """The blocks [B, L] of the gaps: masks, then what is seen behind them, then padding where the text ends.

    The padding is there in a batch of one, too: a forward draws a number for every position, so that a row draws the
    same ones beside any others.
    """
    seen, width = [gap.seen(length, plan.block_length) for gap in gaps], plan.block_length
    ids = torch.tensor([[plan.mask_token_id] * length + after + [0] * (width - length - len(after)) for after in seen])
    given = (torch.arange(width) >= length).expand(len(gaps), -1)
    real = torch.arange(width) < torch.tensor([[length + len(after)] for after in seen])
    return DiffusionBlocks(plan, ids, given, None if bool(real.all()) else real)


def decode_gaps(model: Any, rows: Generations, sampler: Sampler, block: DiffusionBlocks, length: int) -> None:
    """Fill the gaps of all rows; they are changed in place. A drafter's LoRA layers are off."""
    with adapters_switched(model, on=False):
        any_before = any(row.prompt for row in rows.rows)
        cache = prefill_prompts(model, rows)[0] if any_before else KVCache(len(rows.rows))
        fill_blocks(model, rows, cache, sampler, block)
    for number in rows.active:
        rows.extend(number, block.ids[number, :length].tolist(), block.steps[number, :length].tolist())


def sight_text(gap: TextGap, length: int, block_length: int, trained: int) -> str:
    """How much of the text behind a gap was seen, and whether training knew such blocks: blocks of `trained` tokens."""
    seen = len(gap.seen(length, block_length))
    text = f"the gap saw {seen} of the {len(gap.after)} tokens behind it"
    if length + seen <= trained:
        return text
    return f"{text}, in a block of {length + seen}: longer than the {trained} of training, outside of what was trained"

"""Quadratic self-speculation: one forward verifies a draft and drafts the next, whatever part of it is accepted.

Given are k speculative tokens and, after each, a group of k masks that continues the text as if the tokens up to there
were accepted: k * k masks. The group behind the last accepted token becomes the next draft.

Letters: B rows, k tokens of a draft, V vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.config import DecodeConfig
from nld_train.decode.result import Decoded
from nld_train.decode.run import generate_batch
from nld_train.hf.decoding_nemotron_labs_diffusion import accept_draft, noisy_logits, prefill_prompts, sample_next
from nld_train.hf.modeling_ministral import KVCache
from nld_train.hf.rows_nemotron_labs_diffusion import Generations, Streamer
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler, mix_logits, propose_drafts, verify_proposal


def generate_quadratic(
    model: Any, prompts: Sequence[Sequence[int]], settings: DecodeConfig, streamer: Streamer | None = None
) -> list[Decoded]:
    """Decode token lists as one batch. Raises: UserError."""
    length, weight = settings.block_length, settings.ensemble_weight
    return generate_batch(
        model, prompts, settings, streamer, lambda rows, draws: decode_quadratic(model, rows, draws, length, weight)
    )


def decode_quadratic(model: Any, rows: Generations, sampler: Sampler, length: int, weight: float) -> None:
    """Follows exactly what verifies: AR decoding for weight 0, else (1 - weight) * AR + weight * diffusion, where the
    diffusion's view of the next token is the first mask behind the text so far.
    """
    cache, ar = prefill_prompts(model, rows)
    masks = torch.full((len(rows.rows), length), model.config.mask_token_id)
    rows.count("draft", rows.active)
    group = noisy_logits(model, masks, cache, model.config.mask_token_id)
    sample_next(rows, sampler, mix_logits(ar, group[:, 0], weight))
    proposal = propose_drafts(sampler, group[:, 1:], rows.active, threshold=0.0)
    while rows.active:
        active = rows.active
        rows.count("verify", active)
        given = torch.cat([rows.last_tokens(), proposal.tokens.cpu()], 1)
        ar, groups = forward_interleaved(model, given, cache)
        target = sampler.distribution(mix_logits(ar, groups[:, :, 0], weight))
        accepted, behind = verify_proposal(sampler, target, proposal, active)
        accept_draft(rows, cache, proposal.tokens, accepted, behind)
        chosen = groups[torch.arange(len(groups), device=groups.device), accepted]
        proposal = propose_drafts(sampler, chosen[:, 1:], active, threshold=0.0)


def forward_interleaved(model: Any, tokens: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
    """One forward of tokens [B, k] with a group of k masks after each.

    Returns: causal logits [B, k, V] of the tokens, and noisy logits [B, k, k, V] of the group after each of them. The
    cache takes all of it; the tokens come first, so that it can be cropped to the accepted ones.
    """
    rows, length = tokens.shape
    layout = interleaved_layout(length)
    masks = torch.full((rows, length * length), model.config.mask_token_id)
    past = torch.tensor(cache.lengths)[:, None]
    logits = model(
        torch.cat([tokens, masks], 1).to(model.device),
        attention_mask=visible_places(layout, past[:, :, None], max(cache.lengths))[:, None].to(model.device),
        position_ids=(past + layout.offset).to(model.device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    groups = logits[:, length:].unflatten(1, (length, length))
    groups[..., model.config.mask_token_id] = -torch.inf
    return logits[:, :length], groups


@dataclass(frozen=True)
class InterleavedLayout:
    """k tokens, then k groups of k masks, each field [k + k * k]."""

    after: Tensor  # int64: the token that a mask's group follows; a token's own number
    masked: Tensor  # bool
    offset: Tensor  # int64: position behind the past


def interleaved_layout(length: int) -> InterleavedLayout:
    """The places of one forward; the text's order is in the positions, not in the order of the places."""
    number = torch.arange(length)
    after = torch.cat([number, number.repeat_interleave(length)])
    masked = torch.arange(length + length * length) >= length
    behind = torch.cat([torch.zeros_like(number), 1 + number.repeat(length)])
    return InterleavedLayout(after, masked, after + behind)


def visible_places(layout: InterleavedLayout, past: Tensor, longest: int) -> Tensor:
    """Who sees whom: everybody the past and the tokens up to his own, masks also the masks of their group.

    past: [B, 1, 1], cached places of each row. Returns: [B, given, longest + given] bool, over all places of the cache.
    """
    given = len(layout.after)
    place = torch.arange(longest + given) - past  # [B, 1, K], 0 for the first given one
    among = (place >= 0) & (place < given)
    key = place.clamp(0, given - 1)
    after, masked = layout.after[key], layout.masked[key]
    own_after, own_masked = layout.after[:, None], layout.masked[:, None]
    token = ~masked & (after <= own_after)
    group = masked & own_masked & (after == own_after)
    return (place < 0) | (among & (token | group))

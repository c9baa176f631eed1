"""Quadratic self-speculation: one forward verifies a draft and makes the next one, whatever part of it is accepted.

The forward is given k tokens, the last accepted one and a draft of k - 1, and behind each of them a group of k masks
that continues the text as if the tokens up to there were accepted: k * k masks. The group behind the last token that
the verification accepts becomes the next draft.

Letters: B rows, k tokens that a forward verifies, V vocabulary size, K keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.decode.result import Decoded
from nld_train.decode.run import Prompts, generate_batch
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.decoding_nemotron_labs_diffusion import accept_draft, noisy_logits, prefill_prompts, sample_next
from nld_train.hf.modeling_ministral import KVCache
from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Generations, Streamer
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler, mix_logits, propose_drafts, verify_proposal


def generate_quadratic(
    model: Any,
    prompts: Prompts,
    settings: DecodeConfig,
    streamer: Streamer | None = None,
    complete: Complete | None = None,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch. Returns: an answer to each prompt, in their order.

    Raises: UserError for a request that the model cannot serve.
    """
    length, weight = settings.block_length, settings.ensemble_weight
    return generate_batch(
        model,
        prompts,
        settings,
        streamer,
        complete,
        lambda rows, draws: decode_quadratic(model, rows, draws, length, weight),
    )


def decode_quadratic(model: Any, rows: Generations, sampler: Sampler, length: int, weight: float) -> None:
    """Decode all rows to their ends; they are changed in place.

    The tokens follow the verifier's distribution exactly: AR decoding for weight 0, else
    (1 - weight) * AR + weight * diffusion, where diffusion's logits of the next token are those of the first mask
    behind the text so far. length: k.
    """
    # 1. The prefill gives AR's logits of the first token.
    cache, ar = prefill_prompts(model, rows)
    # 2. One forward over k masks behind the prompts gives diffusion's part in the first token, and a first draft.
    masks = torch.full((len(rows.rows), length), model.config.mask_token_id)
    rows.count("draft", rows.active)
    group = noisy_logits(model, masks, cache, model.config.mask_token_id)
    sample_next(rows, sampler, mix_logits(ar, group[:, 0], weight))
    proposal = propose_drafts(sampler, group[:, 1:], rows.active, threshold=0.0)
    while rows.active:
        active = rows.active
        rows.count("verify", active)
        # 3. One forward: AR's logits behind each of the k tokens, and a group of masks behind each.
        given = torch.cat([rows.last_tokens(), proposal.tokens.cpu()], 1)
        ar, groups = forward_interleaved(model, given, cache)
        # 4. The verifier accepts the beginning of the draft that its own distribution allows, and adds a token.
        target = sampler.distribution(mix_logits(ar, groups[:, :, 0], weight))
        accepted, behind = verify_proposal(sampler, target, proposal, active)
        accept_draft(rows, cache, proposal.tokens, accepted, behind)
        # 5. The group behind the last accepted token was drafted for just this outcome: it is the next draft. Its first
        #    mask has had its part in the added token.
        chosen = groups[torch.arange(len(groups), device=groups.device), accepted]
        proposal = propose_drafts(sampler, chosen[:, 1:], active, threshold=0.0)


def forward_interleaved(model: Any, tokens: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
    """One forward of tokens [B, k] int64 with a group of k masks after each.

    Returns: causal logits [B, k, V] of the tokens, and noisy logits [B, k, k, V] of the group after each token, with
    -inf for the mask token. The cache takes all k + k * k keys; the tokens come first, so that it can be cropped to the
    accepted ones.
    """
    rows, length = tokens.shape
    layout = interleaved_layout(length)
    masks = torch.full((rows, length * length), model.config.mask_token_id)
    past = torch.tensor(cache.lengths)[:, None]
    logits = model(
        torch.cat([tokens, masks], 1).to(model.device),
        attention_mask=visible_keys(layout, past[:, :, None], max(cache.lengths))[:, None].to(model.device),
        position_ids=(past + layout.offset).to(model.device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    groups = logits[:, length:].unflatten(1, (length, length))
    groups[..., model.config.mask_token_id] = -torch.inf
    return logits[:, :length], groups


@dataclass(frozen=True)
class InterleavedLayout:
    """The input of one forward: k tokens, then k groups of k masks. Each field is [k + k * k]."""

    after: Tensor  # int64: of a mask, the number of the token that its group follows; of a token, its own number
    masked: Tensor  # bool: whether it is a mask
    offset: Tensor  # int64: its position in the text, counted from the end of the past


def interleaved_layout(length: int) -> InterleavedLayout:
    """The layout for k = `length`, fields [k + k * k]. `offset` holds the text's order, which the input has not."""
    number = torch.arange(length)
    after = torch.cat([number, number.repeat_interleave(length)])
    masked = torch.arange(length + length * length) >= length
    behind = torch.cat([torch.zeros_like(number), 1 + number.repeat(length)])
    return InterleavedLayout(after, masked, after + behind)


def visible_keys(layout: InterleavedLayout, past: Tensor, longest: int) -> Tensor:
    """Which keys every query sees: the past and the tokens up to its own; a mask also sees the masks of its group.

    past: [B, 1, 1] int64, how many keys of each row are cached; longest: the largest of them.
    Returns: [B, Q, K] bool with Q = k + k * k queries and K = longest + Q keys.
    """
    given = len(layout.after)
    index = torch.arange(longest + given) - past  # [B, 1, K]: 0 for the first key of this forward, negative in the past
    among = (index >= 0) & (index < given)
    key = index.clamp(0, given - 1)
    after, masked = layout.after[key], layout.masked[key]
    own_after, own_masked = layout.after[:, None], layout.masked[:, None]
    token = ~masked & (after <= own_after)
    group = masked & own_masked & (after == own_after)
    return (index < 0) | (among & (token | group))

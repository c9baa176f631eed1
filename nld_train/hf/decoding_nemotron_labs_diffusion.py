"""The decoding loops: AR, block diffusion, linear self-speculation. This file travels with every export.

A loop works on rows of different lengths at once, and a row comes out as if it were alone. The state of a row is its
prompt and its generated tokens; the cache holds all of them but those that the next forward is given.

Letters: B rows, n positions of a block, V vocabulary size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks_nemotron_labs_diffusion import DenoisingPlan, DiffusionBlocks, start_blocks, uncached_count
from .modeling_ministral import KVCache
from .rows_nemotron_labs_diffusion import Generations
from .sampling_nemotron_labs_diffusion import (
    DraftProposal,
    Sampler,
    confident_places,
    most_confident,
    propose_drafts,
    verify_proposal,
)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's training flag is put back, whatever happens inside."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training


def is_drafter(model: Any) -> bool:
    """Whether the PEFT adapters on `model` are those of a drafter: on o_proj alone, and for no task of PEFT's own.

    Any other adapter, such as one of task CAUSAL_LM, is a fine-tuned model, which is the same in every mode.
    """
    if not hasattr(model, "peft_config"):
        return False
    return all(
        config.task_type is None and config.target_modules in ("o_proj", ["o_proj"], {"o_proj"})
        for config in model.peft_config.values()
    )


@contextmanager
def adapters_switched(model: Any, on: bool) -> Iterator[None]:
    """A drafter's LoRA layers in `model` switched on or off, then back to what they were, gradient flags included."""
    found = list(model.modules()) if is_drafter(model) else []
    layers = [(module, module.disable_adapters) for module in found if hasattr(module, "lora_A")]
    flags = [(parameter, parameter.requires_grad) for layer, _ in layers for parameter in layer.parameters()]
    try:
        for layer, _ in layers:
            layer.enable_adapters(on)
        yield
    finally:
        for layer, disabled in layers:
            layer.enable_adapters(not disabled)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Prompts as ids [B, longest], and the mask of what is no padding; None where all are as long."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    if all(len(prompt) == width for prompt in prompts):
        return ids, None
    missing = torch.tensor([[width - len(prompt)] for prompt in prompts])
    return ids, (torch.arange(width) >= missing).long()


def prefill_prompts(model: Any, rows: Generations, causal: bool = True) -> tuple[KVCache, Tensor]:
    """One forward over all prompts, counted for those that have a token. Returns: their cache, and the logits [B, V]
    behind the last token of each."""
    ids, real = pad_left([row.prompt for row in rows.rows])
    rows.count("prefill", [number for number in rows.active if rows[number].prompt])
    cache = KVCache(len(ids))
    output = model(
        ids.to(model.device),
        attention_mask=None if real is None else real.to(model.device),
        past_key_values=cache,
        use_cache=True,
        use_causal_mask=causal,
        logits_to_keep=1,
        **rows.images,
    )
    return cache, output.logits[:, -1]


def extend_cache(model: Any, ids: Tensor, cache: KVCache, causal: bool = True, keep: int = 0) -> Tensor:
    """Forward of ids [B, n] that stay in the cache. Returns: logits of the last `keep` positions (0: all)."""
    ids = ids.to(model.device)
    return model(ids, past_key_values=cache, use_cache=True, use_causal_mask=causal, logits_to_keep=keep).logits


def noisy_logits(model: Any, ids: Tensor, cache: KVCache, mask_token_id: int, real: Tensor | None = None) -> Tensor:
    """Logits [B, n, V] of a noisy block over the cached past, which stays as it is.

    The mask itself is never predicted. real: [B, n] bool, False for padding; None: there is none.
    """
    logits = model(
        ids.to(model.device),
        attention_mask=None if real is None else real.to(model.device),
        past_key_values=cache,
        use_cache=False,
        use_causal_mask=False,
    ).logits
    logits[..., mask_token_id] = -torch.inf
    return logits


def sample_next(rows: Generations, sampler: Sampler, logits: Tensor) -> None:
    """Draw the next token of every active row from logits [B, V]."""
    rows.extend_each(sampler.draw(sampler.distribution(logits)[:, None], rows.active)[:, 0])


def decode_ar(model: Any, rows: Generations, sampler: Sampler) -> None:
    """One token per forward. A drafter's LoRA layers are off."""
    with adapters_switched(model, on=False):
        cache, logits = prefill_prompts(model, rows)
        while True:
            sample_next(rows, sampler, logits)
            if not rows.active:
                return
            rows.count("verify", rows.active)
            logits = extend_cache(model, rows.last_tokens(), cache)[:, -1]


def place_confidence(logits: Tensor, tokens: Tensor, block: DiffusionBlocks, waiting: Tensor) -> Tensor:
    """How sure it is that `tokens` [B, n] are right, at the places `waiting` [B, n]: their probability in logits
    [B, n, V], or what the plan's trained sampler says of them. [B, n] float32."""
    if block.plan.sampler is None:
        return logits.float().softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return block.plan.sampler.judge_block(logits, block.ids, waiting, block.real)


def fill_blocks(model: Any, rows: Generations, cache: KVCache, sampler: Sampler, block: DiffusionBlocks) -> None:
    """Fill and revise one block of every active row, one forward per step; a row stops when it is finished."""
    plan, thinking, step = block.plan, rows.limits.thinking, 0
    assert plan.sampler is None or sampler.temperature == 0, "a trained sampler judges the most probable token"
    while busy := block.unfinished_rows(rows.active, rows.limits.eos_token_ids):
        rows.count("draft", busy)
        logits = noisy_logits(model, block.ids, cache, plan.mask_token_id, block.real)
        if thinking is not None:
            early = torch.arange(block.ids.shape[1]) < block.thinks_until
            logits[..., thinking.end_token_id].masked_fill_(early.to(logits.device), -torch.inf)
        tokens = sampler.draw(sampler.distribution(logits), busy)
        waiting = block.masked & torch.tensor([[row in busy] for row in range(len(rows.rows))])
        confidence = place_confidence(logits, tokens, block, waiting).cpu()
        chosen = most_confident(confidence, waiting, block.quota(waiting, step))
        if plan.threshold is not None:
            chosen |= confident_places(confidence, waiting, plan.threshold)
        block.commit(chosen, tokens.cpu(), confidence, torch.tensor([[row.forwards.total()] for row in rows.rows]))
        step += 1


def decode_diffusion(model: Any, rows: Generations, sampler: Sampler, plan: DenoisingPlan) -> None:
    """Block by block over a causal past: seed token, denoising, and one causal forward of the finished block.

    The last block is not run again: nothing would read it. A drafter's LoRA layers are off.
    """
    with adapters_switched(model, on=False):
        cache, logits = prefill_prompts(model, rows, plan.causal_context)
        while True:
            if plan.causal_context:
                sample_next(rows, sampler, logits)
            block = start_blocks(rows, cache, plan)
            fill_blocks(model, rows, cache, sampler, block)
            for number in rows.active:
                known = uncached_count(rows, cache, number)
                rows.extend(number, block.ids[number, known:].tolist(), block.steps[number, known:].tolist())
            if not rows.active:
                return
            rows.count("verify", rows.active)
            logits = extend_cache(model, block.ids, cache, plan.causal_context, keep=1)[:, -1]


def accept_draft(rows: Generations, cache: KVCache, drafted: Tensor, accepted: Tensor, behind: Tensor) -> None:
    """Append each active row's accepted tokens of drafted [B, n] and the one behind them; the cache drops the rest."""
    drafts, counts, last = drafted.tolist(), accepted.tolist(), behind.tolist()
    for number in rows.active:
        gained = rows.extend(number, [*drafts[number][: counts[number]], last[number]])
        rows[number].gains.append(gained)
    cache.crop([length - 1 for length in rows.lengths])


@dataclass(frozen=True)
class DraftRound:
    """One draft and its verification, of all rows."""

    active: Sequence[int]  # numbers of the rows that took part
    logits: Tensor  # [B, n, V]: of the drafted places
    proposal: DraftProposal
    accepted: Tensor  # [B] int64: drafts accepted
    behind: Tensor  # [B] int64: the verifier's own token behind them


@dataclass(frozen=True)
class DraftPlan:
    """How linear self-speculation drafts."""

    block_length: int  # the last known token and n = block_length - 1 drafts
    mask_token_id: int
    threshold: float = 0.0  # a draft stops where no token has this probability
    observe: Callable[[DraftRound], None] | None = None  # told of every round; it changes nothing


def decode_linear_speculation(model: Any, rows: Generations, sampler: Sampler, plan: DraftPlan) -> None:
    """Linear self-speculation: a noisy block drafts, a causal forward verifies. Follows AR decoding exactly.

    LoRA layers of a drafter are on while drafting, off otherwise.
    """
    with adapters_switched(model, on=False):
        cache, logits = prefill_prompts(model, rows)
        sample_next(rows, sampler, logits)
        while rows.active:
            seed, active = rows.last_tokens(), rows.active
            masks = torch.full((len(rows.rows), plan.block_length - 1), plan.mask_token_id)
            with adapters_switched(model, on=True):
                rows.count("draft", active)
                drafts = noisy_logits(model, torch.cat([seed, masks], 1), cache, plan.mask_token_id)[:, 1:]
            proposal = propose_drafts(sampler, drafts, active, plan.threshold)
            rows.count("verify", active)
            logits = extend_cache(model, torch.cat([seed, proposal.tokens.cpu()], 1), cache)
            accepted, behind = verify_proposal(sampler, sampler.distribution(logits), proposal, active)
            accept_draft(rows, cache, proposal.tokens, accepted, behind)
            if plan.observe is not None:
                plan.observe(DraftRound(active, drafts, proposal, accepted, behind))

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

from .configuration_nemotron_labs_diffusion import require_input
from .modeling_ministral import KVCache
from .rows_nemotron_labs_diffusion import Generations
from .sampling_nemotron_labs_diffusion import (
    DraftProposal,
    Sampler,
    confident_places,
    even_quota,
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
    """One forward over all prompts. Returns: their cache, and the logits [B, V] behind the last token of each."""
    ids, real = pad_left([row.prompt for row in rows.rows])
    rows.count("prefill", rows.active)
    cache = KVCache(len(ids))
    output = model(
        ids.to(model.device),
        attention_mask=None if real is None else real.to(model.device),
        past_key_values=cache,
        use_cache=True,
        use_causal_mask=causal,
        logits_to_keep=1,
    )
    return cache, output.logits[:, -1]


def extend_cache(model: Any, ids: Tensor, cache: KVCache, causal: bool = True, keep: int = 0) -> Tensor:
    """Forward of ids [B, n] that stay in the cache. Returns: logits of the last `keep` positions (0: all)."""
    ids = ids.to(model.device)
    return model(ids, past_key_values=cache, use_cache=True, use_causal_mask=causal, logits_to_keep=keep).logits


def noisy_logits(model: Any, ids: Tensor, cache: KVCache, mask_token_id: int) -> Tensor:
    """Logits [B, n, V] of a noisy block over the cached past, which stays as it is.

    The mask itself is never predicted.
    """
    ids = ids.to(model.device)
    logits = model(ids, past_key_values=cache, use_cache=False, use_causal_mask=False).logits
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


@dataclass(frozen=True)
class DenoisingPlan:
    """How block diffusion fills its blocks."""

    block_length: int
    mask_token_id: int
    threshold: float | None  # commit every token with this probability, and the best; None: none for its probability
    forwards_per_block: int | None = None  # denoising forwards of a block at most; None: as many as it has masks
    causal_context: bool = True  # False: the past sees itself in both directions and gives no seed token

    def __post_init__(self) -> None:
        forwards = self.forwards_per_block
        require_input(
            forwards is None or forwards > 0, f"forwards_per_block={forwards}", "1 or more, or none", "raise it"
        )

    def quota(self, masks: Tensor, step: int) -> Tensor:
        """How many of `masks` [B, 1] a block must commit in its forward number `step`, counted from 0: an even share
        of what is left, so that the forwards do; at least one.
        """
        if self.forwards_per_block is None:
            return torch.ones_like(masks)
        return even_quota(masks, self.forwards_per_block - step)


@dataclass
class DiffusionBlocks:
    """The blocks that the rows are filling, on the host."""

    ids: Tensor  # [B, n] int64
    masked: Tensor  # [B, n] bool
    steps: Tensor  # [B, n] int64: the row's forward that gave each token
    thinks_until: Tensor  # [B] int64: place where thinking ends by force; 0: nowhere in this block

    def open(self, row: int, eos_token_ids: Sequence[int]) -> bool:
        """Whether a mask is left that matters: one with no end-of-sequence token to the left of it."""
        for token, masked in zip(self.ids[row].tolist(), self.masked[row].tolist(), strict=True):
            if masked:
                return True
            if token in eos_token_ids:
                return False
        return False


def start_blocks(rows: Generations, cache: KVCache, plan: DenoisingPlan) -> DiffusionBlocks:
    """Blocks that begin with what the cache does not hold yet (the seed token), then masks.

    Where the thinking budget ends within a block, the end of thinking stands there from the start.
    """
    shape = (len(rows.rows), plan.block_length)
    block = DiffusionBlocks(
        torch.full(shape, plan.mask_token_id),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape[0], dtype=torch.long),
    )
    for number in rows.active:
        row = rows[number]
        known = row.tokens[len(row.tokens) - uncached_count(rows, cache, number) :]
        block.ids[number, : len(known)] = torch.tensor(known, dtype=torch.long)
        block.masked[number, : len(known)] = False
        forced = rows.forced_place(row)
        if rows.limits.thinking is not None and forced is not None:
            place = forced - len(row.tokens) + len(known)
            if len(known) <= place < plan.block_length:
                block.ids[number, place], block.masked[number, place] = rows.limits.thinking.end_token_id, False
                block.steps[number, place] = row.forwards.total()
                block.thinks_until[number] = place
    return block


def uncached_count(rows: Generations, cache: KVCache, number: int) -> int:
    """Tokens of a row that its cache does not hold yet."""
    return rows[number].length - cache.lengths[number]


def denoise_blocks(
    model: Any, rows: Generations, cache: KVCache, sampler: Sampler, plan: DenoisingPlan
) -> DiffusionBlocks:
    """Fill one block of every active row, one forward per step; a row stops when no mask is left that matters."""
    block, step = start_blocks(rows, cache, plan), 0
    while busy := [row for row in rows.active if block.open(row, rows.limits.eos_token_ids)]:
        rows.count("draft", busy)
        logits = noisy_logits(model, block.ids, cache, plan.mask_token_id)
        if rows.limits.thinking is not None:
            early = torch.arange(plan.block_length) < block.thinks_until[:, None]
            logits[..., rows.limits.thinking.end_token_id].masked_fill_(early.to(logits.device), -torch.inf)
        tokens = sampler.draw(sampler.distribution(logits), busy)
        confidence = logits.float().softmax(-1).gather(-1, tokens[..., None]).squeeze(-1).cpu()
        waiting = block.masked & torch.tensor([[row in busy] for row in range(len(rows.rows))])
        commit = most_confident(confidence, waiting, plan.quota(waiting.sum(1, keepdim=True), step))
        if plan.threshold is not None:
            commit |= confident_places(confidence, waiting, plan.threshold)
        block.ids = torch.where(commit, tokens.cpu(), block.ids)
        block.steps = torch.where(commit, torch.tensor([[row.forwards.total()] for row in rows.rows]), block.steps)
        block.masked = block.masked & ~commit
        step += 1
    return block


def decode_diffusion(model: Any, rows: Generations, sampler: Sampler, plan: DenoisingPlan) -> None:
    """Block by block over a causal past: seed token, denoising, and one causal forward of the finished block.

    The last block is not run again: nothing would read it. A drafter's LoRA layers are off.
    """
    with adapters_switched(model, on=False):
        cache, logits = prefill_prompts(model, rows, plan.causal_context)
        while True:
            if plan.causal_context:
                sample_next(rows, sampler, logits)
            block = denoise_blocks(model, rows, cache, sampler, plan)
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

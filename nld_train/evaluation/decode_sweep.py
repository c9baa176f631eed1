"""Decode contexts in many ways: one record for each context and point of the sweep.

A point is a mode with its block length and threshold. Greedy AR is always among them: it is what every other answer
is compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch

from nld_train.decode.load import token_text
from nld_train.decode.modes import MODES
from nld_train.decode.result import Decoded
from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.decode.stop_texts import before_stop, ends_with_stop
from nld_train.errors import require
from nld_train.evaluation.contexts import EvalContext, context_prompts
from nld_train.evaluation.evaluated_model import EvaluatedModel
from nld_train.evaluation.record_file import Record
from nld_train.hf.decoding_nemotron_labs_diffusion import DraftRound, evaluation_mode

BASELINE = "ar"
DRAFTING = "self-spec"  # the mode that an adapter changes, and whose drafts are ranked
DENOISING = "diffusion"  # the mode that a trained sampler changes
LOSSLESS = ("self-spec", "quadratic")  # their answers are greedy AR's, token for token


@dataclass(frozen=True)
class SweepPoint:
    """One way to decode."""

    mode: str
    block: int | None = None  # tokens denoised or drafted together; None: the mode has no blocks
    threshold: float | None = None  # of diffusion's commitments
    adapter: bool = False  # drafts with the adapter
    sampler: bool = False  # the trained sampler says how sure a token is

    @property
    def name(self) -> str:
        """E.g. "diffusion, block 16, threshold 0.9, sampler"."""
        block = "" if self.block is None else f", block {self.block}"
        threshold = "" if self.threshold is None else f", threshold {self.threshold:g}"
        helped = f"{', adapter' if self.adapter else ''}{', sampler' if self.sampler else ''}"
        return f"{self.mode}{block}{threshold}{helped}"


def sweep_points(
    modes: Sequence[str],
    blocks: Sequence[int],
    thresholds: Sequence[float],
    adapter: bool,
    sampler: bool = False,
) -> list[SweepPoint]:
    """Greedy AR first, then every mode with every block length, and diffusion with every threshold. adapter, sampler:
    the modes that one changes are there without it and with it."""
    points = [SweepPoint(BASELINE)]
    if DENOISING in modes:
        points += [
            SweepPoint(DENOISING, block, threshold, sampler=with_sampler)
            for block, threshold, with_sampler in product(blocks, thresholds, (False, True) if sampler else (False,))
        ]
    points += [SweepPoint(mode, block) for mode in LOSSLESS if mode in modes for block in blocks]
    if adapter and DRAFTING in modes:
        points += [SweepPoint(DRAFTING, block, adapter=True) for block in blocks]
    return points


def check_sweep(points: Sequence[SweepPoint], max_new_tokens: int) -> None:
    """Raises: UserError where diffusion's blocks do not fill an answer."""
    for point in points:
        if point.mode == DENOISING and point.block is not None:
            require(
                max_new_tokens % point.block == 0,
                f"--max-new-tokens {max_new_tokens} with --block {point.block}",
                "whole blocks in diffusion mode",
                f"use {-(-max_new_tokens // point.block) * point.block}",
            )


@dataclass
class DraftRanks:
    """Watches self-speculation: which choice of the drafter was the right token, where the verifier refused a draft."""

    rounds: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # row -> (accepted, rank; 0: none refused)

    def __call__(self, seen: DraftRound) -> None:
        for row in seen.active:
            place, right = int(seen.accepted[row]), int(seen.behind[row])
            rank = 0
            if place < int(seen.proposal.lengths[row]):
                logits = seen.logits[row, place]
                rank = int((logits > logits[right]).sum()) + 1
            self.rounds.setdefault(row, []).append((place, rank))

    def refused(self, row: int, answer: Decoded) -> list[tuple[int, int]] | None:
        """(place of the draft, from 1 on; rank of the right token) of every refused draft of a row; a round that the
        end of the text cut off is none. None where no rounds were watched."""
        if row not in self.rounds:
            return None
        return [
            (accepted + 1, rank)
            for (accepted, rank), gained in zip(self.rounds[row], answer.accepted_lengths, strict=True)
            if rank > 0 and gained == accepted + 1
        ]


@dataclass(frozen=True)
class SweepRun:
    """Everything that decoding a point needs but the contexts."""

    evaluated: EvaluatedModel
    decode: DecodeConfig
    stops: tuple[str, ...]
    batch: int

    def records(self, point: SweepPoint, contexts: Sequence[EvalContext]) -> Iterator[list[Record]]:
        """The records of a point, batch by batch, in the order of the contexts."""
        for start in range(0, len(contexts), self.batch):
            yield self._batch_records(point, contexts[start : start + self.batch])

    def _batch_records(self, point: SweepPoint, contexts: Sequence[EvalContext]) -> list[Record]:
        settings = replace(self.decode, temperature=0.0, ensemble_weight=0.0)
        if point.block is not None:
            settings = replace(settings, block_length=point.block, threshold=point.threshold, sampler=point.sampler)
        to_text = token_text(self.evaluated.tokenizer)
        complete = ends_with_stop(to_text, self.stops) if self.stops else None
        prompts, ranks = context_prompts(contexts), DraftRanks()
        if point.mode == DRAFTING:
            answers = generate_self_speculation(self.evaluated.model, prompts, settings, None, complete, ranks)
        else:
            answers = MODES[point.mode].load_function()(self.evaluated.model, prompts, settings, None, complete)
        return [
            self._record(point, context, answer, ranks.refused(row, answer), len(contexts))
            for row, (context, answer) in enumerate(zip(contexts, answers, strict=True))
        ]

    def _record(
        self,
        point: SweepPoint,
        context: EvalContext,
        answer: Decoded,
        refused: list[tuple[int, int]] | None,
        rows: int,
    ) -> Record:
        ends = self.decode.eos_token_id or ()
        text = token_text(self.evaluated.tokenizer)([token for token in answer.ids if token not in ends])
        return {
            "key": f"{point.name}|{context.key}",
            "point": vars(point),
            "context": context.key,
            "category": context.category,
            "prompt_tokens": len(context.ids),
            "ids": answer.ids,
            "text": before_stop(text, self.stops),
            "reference": context.reference,
            "prefill": answer.nfe.prefill,
            "forwards": answer.nfe.total,
            "accepted": answer.accepted_lengths,
            "refused": refused,
            "as_ar": agreement_with_ar(self.evaluated.model, context, answer.ids),
            "seconds": answer.seconds / rows,
            **({"question": context.question, "images": list(context.files)} if context.files else {}),
        }


def agreement_with_ar(model: Any, context: EvalContext, answer: Sequence[int]) -> int:
    """How many tokens of an answer are the ones that greedy AR would put behind the context and the answer so far."""
    given = torch.tensor([[*context.ids, *answer]], device=model.device)
    with evaluation_mode(model):
        logits = model(given[:, :-1], use_causal_mask=True, logits_to_keep=len(answer), **context.images).logits[0]
    return int((logits.argmax(-1) == given[0, -len(answer) :]).sum())

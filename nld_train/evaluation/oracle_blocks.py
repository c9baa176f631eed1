"""The speed of light of contexts, measured: targets, the ways to them, and linear self-speculation beside them.

A block is B masks behind the prompt and the targets of the context's earlier blocks; it has no seed token. Its target
is the end of serial denoising, and joins the text by one causal forward, the cache refresh. A block whose target holds
an id that ends the text ends its context: it is left out of all figures, and so is what would come behind it.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import require
from nld_train.evaluation.contexts import EvalContext
from nld_train.evaluation.oracle_compaction import CompactionSearch
from nld_train.evaluation.oracle_forwards import Asked, Going, OracleBlock, StateForwards, follow_blocks, run_walks
from nld_train.evaluation.oracle_walks import (
    Path,
    Prediction,
    State,
    Walk,
    greedy_walk,
    masked_block,
    serial_walk,
    threshold_walk,
)
from nld_train.evaluation.record_file import Record, RecordFile
from nld_train.hf.decoding_nemotron_labs_diffusion import adapters_switched, evaluation_mode

CONTEXTS = 16  # that are measured together, and recorded together
Advance = Callable[[int], None]  # called with so many units of work that are done


@dataclass(frozen=True)
class OracleSettings:
    """What is measured."""

    block_lengths: tuple[int, ...]
    thresholds: tuple[float, ...]  # of the real samplers
    depth: int  # levels of compaction; 0: greedy acceptance alone
    budget: int  # distinct states that compaction asks for in a block
    max_new_tokens: int  # of a context, whole blocks of every length
    eos_token_ids: tuple[int, ...]

    def units(self, contexts: int) -> int:
        """The work on so many contexts: each of their tokens has a target and a way to it, in every block length."""
        return 2 * self.max_new_tokens * len(self.block_lengths) * contexts


def record_key(context: EvalContext, length: int) -> str:
    """The key of a context's record for one block length."""
    return f"{context.key} block {length}"


def check_oracle_room(contexts: Sequence[EvalContext], settings: OracleSettings, positions: int) -> None:
    """Raises: UserError for a context without room for its new tokens and a draft that begins at the last of them."""
    new = settings.max_new_tokens + max(settings.block_lengths)
    for context in contexts:
        got = f"prompt {context.key} of {len(context.ids)} tokens with --max-new-tokens {settings.max_new_tokens}"
        fits = len(context.ids) + new <= positions
        require(fits, got, f"{positions} positions for both and one block", "shorten the prompt, or lower the number")


def measure_contexts(
    model: Any, contexts: Sequence[EvalContext], settings: OracleSettings, records: RecordFile, advance: Advance
) -> None:
    """Record every context in every block length; what is recorded already is not measured again.

    The same contexts are always measured together, whatever is recorded, so that they round alike.
    """
    for length in settings.block_lengths:
        for first in range(0, len(contexts), CONTEXTS):
            together = contexts[first : first + CONTEXTS]
            missing = records.missing([record_key(context, length) for context in together])
            if not missing:
                advance(settings.units(len(together)) // len(settings.block_lengths))
                continue
            for record in measure_together(model, together, length, settings, advance):
                if record["key"] in missing:
                    records.append(record)


def measure_together(
    model: Any, contexts: Sequence[EvalContext], length: int, settings: OracleSettings, advance: Advance
) -> list[Record]:
    """The records of contexts in one block length."""
    with evaluation_mode(model), adapters_switched(model, on=False):
        forwards = StateForwards(model, [context.ids for context in contexts])
        # 1. The targets of all blocks, one block of every context after the other.
        found = find_targets(forwards, length, settings, advance)
        # 2. The ways to them, for all blocks at once.
        ways = find_ways([block for blocks in found for block in blocks], forwards, settings, advance)
    # 3. Linear self-speculation behind the same prompts.
    gains = linear_gains(model, contexts, length, settings)
    return [
        {
            "key": record_key(context, length),
            "context": context.key,
            "category": context.category,
            "block": length,
            "ended": len(blocks) * length < settings.max_new_tokens,
            "blocks": [ways[block] for block in blocks],
            "linear": gained,
        }
        for context, blocks, gained in zip(contexts, found, gains, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class TargetBlock:
    """A block and serial denoising's path through it, whose end is its target."""

    block: OracleBlock
    serial: Path


def find_targets(
    forwards: StateForwards, length: int, settings: OracleSettings, advance: Advance
) -> list[list[TargetBlock]]:
    """The blocks of every context, up to the one whose target ends the text."""
    found: list[list[TargetBlock]] = [[] for _ in forwards.rows]

    def take(blocks: Sequence[OracleBlock], left: int) -> Going:
        paths = run_walks([(block, serial_walk(length)) for block in blocks], forwards.predict_states)
        going = {}
        for block, path in zip(blocks, paths, strict=True):
            if set(path[-1]).isdisjoint(settings.eos_token_ids):
                found[block.row].append(TargetBlock(block, path))
                going[block.row] = path[-1]
                advance(length)
            else:
                advance(2 * length * left)
        return going

    follow_blocks(forwards, length, settings.max_new_tokens // length, take)
    return found


def find_ways(
    blocks: Sequence[TargetBlock], forwards: StateForwards, settings: OracleSettings, advance: Advance
) -> dict[TargetBlock, dict[str, Any]]:
    """What is recorded of blocks: steps, and whether they end in the target, of greedy acceptance, the real samplers
    and compaction."""

    def predict(asked: Sequence[Asked]) -> list[Prediction]:
        busy = sorted({block.row for block, _ in asked})  # a context without a question has no walk left
        if 2 * len(busy) <= len(forwards.rows):
            forwards.keep_rows(busy)
        return forwards.predict_states(asked)

    searches = [CompactionSearch(block.serial, settings.budget) for block in blocks]
    walks: list[tuple[OracleBlock, Walk[Path]]] = []
    for block, search in zip(blocks, searches, strict=True):
        start, target = masked_block(len(search.target)), search.target
        ways = [greedy_walk(start, target), *(threshold_walk(len(target), each) for each in settings.thresholds)]
        ways += [search.walk_block(settings.depth)] if settings.depth else []
        ways[-1] = _announced(ways[-1], advance)
        walks += [(block.block, way) for way in ways]
    paths = iter(run_walks(walks, predict))
    found = {}
    for block, search in zip(blocks, searches, strict=True):
        greedy, *samplers = [_measured(next(paths), search.target) for _ in range(1 + len(settings.thresholds))]
        found[block] = {"greedy": greedy, "samplers": samplers}
        if settings.depth:
            compaction = {"compaction": len(next(paths)), "states": search.spent, "stopped": search.stopped}
            found[block] |= compaction
    return found


def _announced(walk: Walk[Path], advance: Advance) -> Walk[Path]:
    """The walk itself, whose end is said."""
    path = yield from walk
    advance(len(path[-1]))
    return path


def _measured(path: Path, target: State) -> list[int]:
    """[steps of a path, whether it ends in the target]."""
    return [len(path), int(path[-1] == target)]


def linear_gains(model: Any, contexts: Sequence[EvalContext], length: int, settings: OracleSettings) -> list[list[int]]:
    """The accepted lengths of linear self-speculation, of the cycles that begin within the new tokens of each context.

    It is given room for the draft that begins at the last token: a cycle that --max-new-tokens cuts off would count
    fewer tokens than were accepted, and make the gap look larger.
    """
    decode = DecodeConfig(
        max_new_tokens=settings.max_new_tokens + length, block_length=length, eos_token_id=settings.eos_token_ids
    )
    answers = generate_self_speculation(model, [context.ids for context in contexts], decode)
    kept = []
    for answer in answers:
        begins = itertools.accumulate(answer.accepted_lengths, initial=1)  # the prefill gives the first token
        pairs = zip(answer.accepted_lengths, begins, strict=False)
        kept.append([gained for gained, begin in pairs if begin < settings.max_new_tokens])
    return kept

"""Collecting trajectories: prompts in parts, which are written one after the other; a killed collection goes on.

A part is the same bytes whoever writes it: its contexts are measured CONTEXTS at a time, whatever is there already. So
the shards of a collection write into one folder, or into several that are put together later.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nld_train.decode.ar import generate_ar
from nld_train.decode.run import text_ends
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError, require
from nld_train.evaluation.contexts import ContextSettings, EvalContext, build_contexts
from nld_train.evaluation.evaluated_model import EvaluatedModel
from nld_train.evaluation.oracle_blocks import CONTEXTS
from nld_train.evaluation.prompt_file import EvalPrompt
from nld_train.files import unwritable_refused
from nld_train.hf.decoding_nemotron_labs_diffusion import adapters_switched, evaluation_mode
from nld_train.json_file import read_json_object
from nld_train.objective_sections import CONFIDENCE, HYBRID
from nld_train.sampler.collection_size import CollectionSize, sized_trajectories
from nld_train.sampler.trajectory_walks import (
    Advance,
    SeenForwards,
    TextLimits,
    Trajectory,
    confidence_trajectories,
    hybrid_trajectories,
)
from nld_train.trajectories.embedding_pca import fit_embedding_pca
from nld_train.trajectories.stored_parts import (
    COLLECTION,
    INDEX,
    MANIFEST,
    PCA,
    PlacedTrajectory,
    checked_part,
    group_name,
    json_text,
    part_counts_path,
    read_pca,
    write_part,
    write_pca,
    write_whole_file,
)

logger = logging.getLogger(__name__)
Contexts = Sequence[tuple[int, EvalContext]]  # with the number of the prompt


def distinct_prompts(prompts: Sequence[EvalPrompt]) -> list[EvalPrompt]:
    """The prompts whose turns no prompt before them has, to the letter."""
    first: dict[tuple[str, ...], EvalPrompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.turns, prompt)
    return list(first.values())


@dataclass(frozen=True)
class CollectionPlan:
    """What is collected."""

    prompts: Sequence[EvalPrompt]  # distinct ones
    blocks: tuple[int, ...]
    policies: tuple[str, ...]
    part: int  # prompts of a part
    chat: bool
    thinking: bool
    max_new_tokens: int  # of a context, whole blocks of every length

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-len(self.prompts) // self.part)

    @property
    def settings(self) -> ContextSettings:
        """How prompts become contexts."""
        return ContextSettings(DecodeConfig(max_new_tokens=self.max_new_tokens), self.chat, self.thinking)

    def part_prompts(self, number: int) -> Sequence[EvalPrompt]:
        return self.prompts[number * self.part : (number + 1) * self.part]

    def shard_parts(self, shard: tuple[int, int] | None) -> range:
        """The parts of shard I of N: every Nth from the Ith on; all of them without a shard."""
        return range(self.parts) if shard is None else range(shard[0] - 1, self.parts, shard[1])

    def contexts(self, parts: Iterable[int]) -> int:
        """The contexts of parts: every turn of a prompt is one."""
        return sum(len(prompt.turns) for number in parts for prompt in self.part_prompts(number))

    def tokens(self, contexts: int) -> int:
        """The tokens that are filled behind so many contexts, at most."""
        return contexts * self.max_new_tokens * len(self.blocks) * len(self.policies)

    def size(self, contexts: int) -> CollectionSize:
        """What so many contexts come to, at most."""
        ways = contexts * len(self.policies)
        return sized_trajectories([(length, ways * (self.max_new_tokens // length)) for length in self.blocks])


def open_collection_folder(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder and its manifest, or find the same manifest there. overwrite: what another collection left is
    removed first. Raises: UserError where the folder holds another collection, or cannot be written."""
    with unwritable_refused(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for path in [*(folder / name for name in (INDEX, MANIFEST, PCA)), *folder.glob("part-*")]:
                path.unlink(missing_ok=True)
    check_same_collection(folder, identity)
    if not (folder / MANIFEST).exists():
        write_whole_file(folder / MANIFEST, json_text(identity))


def check_same_collection(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises: UserError where the folder holds another collection."""
    if not (folder / MANIFEST).exists():
        return
    found = read_json_object(folder / MANIFEST, COLLECTION)
    differing = sorted(name for name in found.keys() | identity if found.get(name) != identity.get(name))
    for name in differing[:1]:
        got = f"{folder} holds another collection: {name}={found.get(name)!r}, here {identity.get(name)!r}"
        require(False, got, "the settings it was begun with", "give another --output, or --overwrite to begin anew")


def missing_parts(folder: Path, parts: Iterable[int]) -> list[int]:
    """Those of the parts that are not there yet."""
    return [number for number in parts if not part_counts_path(folder, number).is_file()]


def check_part_contexts(evaluated: EvaluatedModel, plan: CollectionPlan, parts: Iterable[int]) -> None:
    """Refuse before any work what would be refused in the middle of it: all but turns that need an answer first, whose
    length is known when their part comes. Raises: UserError."""
    prompts = [prompt for number in parts for prompt in plan.part_prompts(number)]
    build_contexts(evaluated, [each for each in prompts if len(each.turns) == 1 or not plan.chat], plan.settings)


def collect_parts(
    evaluated: EvaluatedModel, plan: CollectionPlan, folder: Path, parts: Sequence[int], advance: Advance
) -> None:
    """Write these parts, the PCA where it is missing, and the index where all parts of the plan are there then."""
    if not (folder / PCA).is_file():
        table = evaluated.model.get_input_embeddings().weight
        assert isinstance(table, Tensor), "the embedding is a table"
        write_pca(folder, fit_embedding_pca(table))
    began, steps = time.monotonic(), 0
    for number in parts:
        groups, ends = collect_part(evaluated, plan, number, advance)
        write_part(folder, number, groups, ends)
        steps += sum(len(each.trajectory.step_masks()) for placed in groups.values() for each in placed)
    if parts:
        seconds = time.monotonic() - began
        logger.info("%d steps in %.1f s: %.1f steps/s", steps, seconds, steps / seconds)
    if not missing_parts(folder, range(plan.parts)):
        write_index(folder, plan.parts)


def collect_part(
    evaluated: EvaluatedModel, plan: CollectionPlan, number: int, advance: Advance
) -> tuple[dict[str, list[PlacedTrajectory]], tuple[int, ...]]:
    """The trajectories of a part, by group, and the ids that end a text."""
    prompts = plan.part_prompts(number)
    numbers = [number * plan.part + place for place, prompt in enumerate(prompts) for _ in prompt.turns]
    found, decode = build_contexts(evaluated, prompts, plan.settings)
    contexts = list(zip(numbers, found, strict=True))
    groups: dict[str, list[PlacedTrajectory]] = {
        group_name(policy, length): [] for policy in plan.policies for length in plan.blocks
    }
    with evaluation_mode(evaluated.model), adapters_switched(evaluated.model, on=False):
        for first in range(0, len(contexts), CONTEXTS):
            together = contexts[first : first + CONTEXTS]
            for name, ways in _collect_together(evaluated, plan, together, decode, advance).items():
                for (prompt, context), way in zip(together, ways, strict=True):
                    turn = int(context.key.rpartition("/")[2])
                    groups[name] += [PlacedTrajectory(prompt, turn, block, each) for block, each in enumerate(way)]
    return groups, text_ends(evaluated.model.config, decode)


def _collect_together(
    evaluated: EvaluatedModel, plan: CollectionPlan, contexts: Contexts, decode: DecodeConfig, advance: Advance
) -> dict[str, list[list[Trajectory]]]:
    """By group, the trajectories of every context."""
    ids = [context.ids for _, context in contexts]
    forwards, found = SeenForwards(evaluated.model, ids), {}
    truths = ground_truths(evaluated, contexts, decode, plan.chat) if HYBRID in plan.policies else []
    limits = TextLimits(plan.max_new_tokens, text_ends(evaluated.model.config, decode))
    for length in plan.blocks:
        for policy in plan.policies:
            forwards.return_to_prompts()
            if policy == CONFIDENCE:
                ways = confidence_trajectories(forwards, length, limits, advance)
            else:
                ways = hybrid_trajectories(forwards, truths, length, advance)
                advance(plan.max_new_tokens * len(ids) - length * sum(map(len, ways)))
            found[group_name(policy, length)] = ways
    return found


def ground_truths(
    evaluated: EvaluatedModel, contexts: Contexts, decode: DecodeConfig, chat: bool
) -> list[Sequence[int]]:
    """What should stand behind every context, at most max_new_tokens: its reference, with the end of the turn behind it
    in a chat; where it has none, greedy AR's answer. This choice is ours."""
    truths: dict[int, Sequence[int]] = {}
    for place, (_, context) in enumerate(contexts):
        if context.reference is not None:
            known = evaluated.tokenizer.encode(context.reference).tolist()
            end = list(decode.eos_token_id or ())[:1] if chat else []
            truths[place] = [*known, *end][: decode.max_new_tokens]
    unknown = [place for place in range(len(contexts)) if place not in truths]
    if unknown:
        prompts = [contexts[place][1].ids for place in unknown]
        answers = generate_ar(evaluated.model, prompts, replace(decode, temperature=0.0))
        truths |= {place: answer.ids for place, answer in zip(unknown, answers, strict=True)}
    return [truths[place] for place in range(len(contexts))]


def merge_parts(folder: Path) -> tuple[int, int]:
    """Check that all parts of a collection are there as they were written, and write their index. Returns: the numbers
    of parts and of trajectories. Raises: UserError where a part is missing, or is not as it was written."""
    parts = read_json_object(folder / MANIFEST, COLLECTION).get("parts")
    if not isinstance(parts, int):
        raise UserError(f"{folder / MANIFEST} does not count its parts", COLLECTION, "begin anew in another folder")
    missing = missing_parts(folder, range(parts))
    got = f"{folder} lacks {len(missing)} of {parts} parts"
    require(not missing, got, "all parts", "give the command of the shards again: they go on")
    read_pca(folder)
    for number in range(parts):
        checked_part(folder, number)
    return parts, sum(totals["trajectories"] for totals in write_index(folder, parts).values())


def write_index(folder: Path, parts: int) -> dict[str, dict[str, int]]:
    """Put the counts of all parts together. Returns: their sums by group. Raises: UserError."""
    found = [read_json_object(part_counts_path(folder, number), COLLECTION) for number in range(parts)]
    totals: dict[str, dict[str, int]] = {}
    for counts in found:
        for group, own in counts["groups"].items():
            sums = totals.setdefault(group, dict.fromkeys(own, 0))
            totals[group] = {name: sums[name] + own[name] for name in own}
    write_whole_file(folder / INDEX, json_text({"ends": found[0]["ends"], "totals": totals, "parts": found}))
    return totals

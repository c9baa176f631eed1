"""The rows of a sampler's run: a trajectory each, with all its steps, from a folder of `nld sampler collect`.

A row's number in the run decides which trajectory it is. The prompts of the collection are split as documents are, so
no text of validation was trained on; an epoch takes every trajectory of its part once, in an order of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from nld_train.config import RunConfig, require
from nld_train.data.splits import PARTS, epoch_permutation, part_counts, parts_read, split_documents
from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS
from nld_train.json_file import read_json_object
from nld_train.trajectories.sampler_batch import TrajectoryRow
from nld_train.trajectories.stored_parts import COLLECTION, INDEX, MANIFEST, part_path, read_pca
from nld_train.trajectories.trajectory import Trajectory


@dataclass(frozen=True)
class CollectionRecord:
    """What the manifest and the index of a collection say."""

    folder: Path
    parts: int
    prompts: int  # distinct ones, numbered from 0 on
    blocks: tuple[int, ...]
    policies: tuple[str, ...]
    ends: tuple[int, ...]  # the ids that end a text
    trajectories: dict[str, int]  # by group

    @property
    def identity(self) -> Path:
        """The file that names the SHA-256 of every part."""
        return self.folder / INDEX


def read_collection(folder: Path) -> CollectionRecord:
    """Raises: UserError for a folder that is no collection, or is not whole."""
    manifest = read_json_object(folder / MANIFEST, COLLECTION)
    whole = (folder / INDEX).is_file()
    require(whole, f"no {INDEX} in {folder}", "a whole collection", "go on with `nld sampler collect`, or merge it")
    index = read_json_object(folder / INDEX, COLLECTION)
    same = manifest.get("statistics") == list(STATISTICS)
    require(same, f"{folder} has other statistics of a position", "those of this version", "collect again")
    return CollectionRecord(
        folder,
        manifest["parts"],
        manifest["prompts_read"] - manifest["duplicates"],
        tuple(manifest["blocks"]),
        tuple(manifest["policies"]),
        tuple(index["ends"]),
        {group: totals["trajectories"] for group, totals in index["totals"].items()},
    )


def run_collection(run: RunConfig) -> CollectionRecord:
    """The collection that a sampler's run trains on. Raises: UserError."""
    (folder,) = run.data.blend
    return read_collection(Path(folder))


def check_trajectory_data(run: RunConfig) -> CollectionRecord:
    """Refuse trajectories that are missing, of another vocabulary, or of other blocks and policies than the run trains
    on, and too few prompts for a part. Raises: UserError."""
    assert run.sampler is not None, f"{run.name} trains no sampler"
    found = run_collection(run)
    missing = set(run.sampler.policies) - set(found.policies)
    got = f"{found.folder} was collected by {', '.join(found.policies)}"
    require(
        not missing, got, f"sampler.policies={run.sampler.policies}", "collect all of them, or set sampler.policies"
    )
    longest = max(found.blocks)
    fits = longest <= run.data.sequence_length
    got = f"{found.folder} has blocks of {longest}, data.sequence_length={run.data.sequence_length}"
    require(fits, got, "rows as long as the longest block", f"set data.sequence_length={longest}")
    vocabulary = len(read_pca(found.folder).coordinates)
    got = f"{found.folder} is of a model with {vocabulary:,} ids, model.vocab_size={run.model.vocab_size:,}"
    require(
        vocabulary == run.model.vocab_size, got, "the model whose trajectories these are", "correct the model section"
    )
    for part, count in part_counts(found.prompts, run.data.split).items():
        got = f"{found.folder} has {found.prompts:,} prompts, and none for {part} under data.split={run.data.split}"
        enough = count > 0 or part not in parts_read(run)
        require(enough, got, "one or more", "collect more prompts, or give other shares")
    for number in range(found.parts):
        there = part_path(found.folder, number).is_file()
        require(there, f"no {part_path(found.folder, number)}", "all parts of the index", "copy it, or collect again")
    return found


def trajectory_digests(folder: Path) -> dict[Path, str]:
    """The files of a collection's parts, and the SHA-256 that each should have. Raises: UserError."""
    index = read_json_object(folder / INDEX, COLLECTION)
    return {folder / part["file"]: part["sha256"] for part in index["parts"]}


class StoredGroups:
    """Reads single trajectories of parts that stay on the disk."""

    def __init__(self, record: CollectionRecord) -> None:
        self.record = record
        self._opened: dict[int, Any] = {}
        self._starts: dict[tuple[int, str], NDArray[np.int64]] = {}

    @cached_property
    def coordinates(self) -> torch.Tensor:
        """The compressed embedding [V, P] of every token."""
        return read_pca(self.record.folder).coordinates

    def tensor(self, part: int, name: str) -> torch.Tensor | None:
        """A whole tensor of a part, [N, ...]; None where the part has none of that name."""
        file = self._file(part)
        return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - a file, and no dict

    def read(self, part: int, group: str, place: int) -> Trajectory:
        """Trajectory number `place` of a group of a part."""
        file, starts = self._file(part), self._position_starts(part, group)
        first, last = int(starts[place]), int(starts[place + 1])
        own = {name: file.get_slice(f"{group}.{name}")[place] for name in ("final", "committed")}
        steps = {name: file.get_slice(f"{group}.{name}")[first:last] for name in ("top", "statistics")}
        return Trajectory(**own, **steps)

    def _file(self, part: int) -> Any:
        if part not in self._opened:
            self._opened[part] = safe_open(part_path(self.record.folder, part), "pt")
        return self._opened[part]

    def _position_starts(self, part: int, group: str) -> NDArray[np.int64]:
        """Where the masked places of each trajectory of a group begin, and where the last one's end: [N + 1]."""
        if (part, group) not in self._starts:
            committed = self.tensor(part, f"{group}.committed")
            assert committed is not None, f"part {part} has no {group}"
            sizes = (committed.long() + 1).sum(1).numpy()
            self._starts[part, group] = np.concatenate([[0], sizes.cumsum()])
        return self._starts[part, group]

    def __getstate__(self) -> dict[str, Any]:
        """A loader's worker opens the files itself."""
        return {**vars(self), "_opened": {}}


class TrajectoryRows(Sequence[TrajectoryRow]):
    """So many rows, from row 0 of the run on. numbers: of the trajectories of the part, among `places`."""

    def __init__(
        self, stored: StoredGroups, places: "TrajectoryPlaces", numbers: NDArray[np.int64], seed: int, asked: int
    ) -> None:
        assert len(numbers), "a part without trajectories: it is refused where it is opened"
        self.stored, self.places, self.numbers, self.seed, self.asked = stored, places, numbers, seed, asked
        self._epoch: tuple[int, NDArray[np.int64]] | None = None  # the one that was last read

    def __len__(self) -> int:
        return self.asked

    def __getitem__(self, index: int) -> TrajectoryRow:  # type: ignore[override]
        if not 0 <= index < self.asked:
            raise IndexError(f"row {index} of {self.asked}")
        epoch, place = divmod(index, len(self.numbers))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_permutation(self.seed, epoch, len(self.numbers))
        trajectory = self.stored.read(*self.places.find(int(self.numbers[self._epoch[1][place]])))
        examples = trajectory.step_examples(self.stored.coordinates, self.stored.record.ends)
        return TrajectoryRow(index, examples)


@dataclass(frozen=True)
class TrajectoryPlaces:
    """Where every trajectory is, and which prompt it is from; in the order of parts, groups and places. [T] each."""

    groups: tuple[str, ...]
    part: NDArray[np.int32]
    group: NDArray[np.int8]  # number of the group in `groups`
    place: NDArray[np.int32]
    prompt: NDArray[np.int32]

    def find(self, number: int) -> tuple[int, str, int]:
        """Part, group and place of a trajectory."""
        return int(self.part[number]), self.groups[self.group[number]], int(self.place[number])


def trajectory_places(stored: StoredGroups, policies: Sequence[str]) -> TrajectoryPlaces:
    """The places of all trajectories of these policies."""
    groups = tuple(sorted(name for name in stored.record.trajectories if name.partition(".")[0] in policies))

    def each_group() -> Iterator[tuple[int, int, NDArray[np.int32]]]:
        for part in range(stored.record.parts):
            for number, group in enumerate(groups):
                prompts = stored.tensor(part, f"{group}.prompt")
                if prompts is not None:
                    yield part, number, prompts.numpy()

    found = list(each_group())
    counts = [len(prompts) for _, _, prompts in found]
    return TrajectoryPlaces(
        groups,
        np.repeat(np.array([part for part, _, _ in found], np.int32), counts),
        np.repeat(np.array([number for _, number, _ in found], np.int8), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts] or [np.empty(0, np.int32)]),
        np.concatenate([prompts for _, _, prompts in found] or [np.empty(0, np.int32)]),
    )


def open_trajectory_rows(run: RunConfig) -> dict[str, TrajectoryRows]:
    """The rows of each part that a sampler's run reads. Raises: UserError where a part has no trajectory."""
    assert run.sampler is not None, f"{run.name} trains no sampler"
    record = run_collection(run)
    stored = StoredGroups(record)
    places = trajectory_places(stored, run.sampler.policies)
    batch = run.train.global_batch
    asked = dict(zip(PARTS, (run.train.iterations * batch, run.train.eval_batches * batch), strict=True))
    prompts, parts = split_documents(record.prompts, run.data.split), {}
    for part in parts_read(run):
        numbers = np.flatnonzero(np.isin(places.prompt, prompts[part]))
        got = f"{record.folder} has no trajectory of the {len(prompts[part]):,} prompts for {part}"
        require(len(numbers) > 0, got, "one or more", "collect more prompts, or set data.split")
        parts[part] = TrajectoryRows(stored, places, numbers, run.data.shuffle_seed, asked[part])
    return parts

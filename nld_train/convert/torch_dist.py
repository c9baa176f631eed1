"""Megatron's torch_dist checkpoints read and written tensor by tensor: no Megatron, no process group, no GPU.

The weights have the same names and global shapes whatever the layout they were saved from: layers lie stacked in one
tensor, and torch.distributed.checkpoint finds which stored pieces make up a range of it.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, LoadPlanner, SavePlanner
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nld_train.convert.weight_table import Shape, WeightMapping
from nld_train.errors import UserError
from nld_train.run_folder.checkpoint_pickles import UNREADABLE, read_checkpoint_metadata

OPTIMIZER = "optimizer."  # prefix of what is no weight


class StoredWeights:
    """The weights of a checkpoint folder, read by ranges.

    Raises: UserError for a folder without a readable checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = FileSystemReader(folder)
        metadata = read_checkpoint_metadata(folder)
        self.reader.set_up_storage_reader(metadata, is_coordinator=True)
        self.tensors = {
            name: stored
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not name.startswith(OPTIMIZER)
        }

    @property
    def shapes(self) -> dict[str, Shape]:
        """Global shapes, stacked layers included."""
        return {name: tuple(stored.size) for name, stored in self.tensors.items()}

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {stored.properties.dtype for stored in self.tensors.values()}

    def row_ranges(self, unit: WeightMapping) -> list[tuple[int, int]]:
        """The unit's rows cut where stored pieces begin, so that each is read once; without padding."""
        axis = 0 if unit.layer is None else 1
        rows = unit.shape[0]
        starts = {chunk.offsets[axis] for chunk in self.tensors[unit.name].chunks}
        bounds = sorted({0, rows} | {start for start in starts if start < rows})
        return list(zip(bounds, bounds[1:], strict=False))

    def read(self, unit: WeightMapping, dtype: torch.dtype, first: int = 0, last: int | None = None) -> Tensor:
        """Rows first..last (None: all up to the padding) of a mapping's tensor: [last - first, ...]."""
        rows = range(unit.shape[0])[first:last]
        target = torch.empty((len(rows), *unit.shape[1:]), dtype=dtype)
        offsets, shape = [rows.start] + [0] * (target.dim() - 1), list(target.shape)
        if unit.layer is not None:
            offsets, shape = [unit.layer, *offsets], [1, *shape]
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))
        items = create_read_items_for_chunk_list(unit.name, self.tensors[unit.name], [wanted])
        try:
            self.reader.read_data(LoadPlan(items), _Into(target.view(shape)))
        except UNREADABLE as error:
            raise UserError(
                f"{self.folder}: {unit.name} cannot be read ({' '.join(str(error).split())[:120]})",
                "a whole checkpoint",
                "copy it again, or use another step",
            ) from error
        return target


class _Into(LoadPlanner):
    """Copies what is read into one tensor, in its dtype."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        found = self.target
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            found = found.narrow(axis, start, length)
        return found

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass  # `tensor` is a view of the target

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("weights alone are read")

    def set_up_planner(self, state_dict: object, metadata: object = None, is_coordinator: bool = False) -> None:
        raise AssertionError("the plan is made before")

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the plan is made before")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise AssertionError("the plan is made before")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise AssertionError("the plan is made before")


@dataclass(frozen=True)
class TensorRange:
    """A range of a stored tensor, and how to get its numbers when its turn comes."""

    name: str
    size: Shape  # of the whole tensor
    offsets: Shape
    shape: Shape
    dtype: torch.dtype
    numbers: Callable[[], Tensor]


def write_torch_dist(folder: Path, pieces: Sequence[TensorRange], objects: dict[str, object]) -> None:
    """Write a torch_dist checkpoint; one piece at a time is in memory. `objects`: small values by their stored name."""
    # One file per piece: the writer keeps what it wrote into a file until the file is done.
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.save({}, storage_writer=writer, planner=_Streamed(pieces, objects), no_dist=True)


class _Streamed(SavePlanner):
    """Plans every piece, and gets its numbers only when it is written."""

    def __init__(self, pieces: Sequence[TensorRange], objects: dict[str, object]) -> None:
        self.objects = objects
        self.pieces = {MetadataIndex(piece.name, torch.Size(piece.offsets)): piece for piece in pieces}

    def set_up_planner(self, state_dict: object, storage_meta: object = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([*self._objects(), *self._tensors()])

    def _objects(self) -> Iterator[WriteItem]:
        for name in self.objects:
            yield WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO)

    def _tensors(self) -> Iterator[WriteItem]:
        for index, piece in self.pieces.items():
            chunk = ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.shape))
            data = TensorWriteData(chunk, TensorProperties(dtype=piece.dtype), torch.Size(piece.size))
            yield WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            stored = io.BytesIO()
            torch.save([self.objects[write_item.index.fqn]], stored)
            return stored
        piece = self.pieces[write_item.index]
        return piece.numbers().to(piece.dtype).contiguous().view(piece.shape)

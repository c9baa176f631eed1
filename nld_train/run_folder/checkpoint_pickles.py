"""What a checkpoint brings is read as data, never run: a pickle may name any function for its reader to call.

torch and Megatron unpickle `.metadata` and the small objects of a checkpoint without asking what they name. So all of
them are read here first, by readers that know the few classes of our own checkpoints and refuse every other name.
"""

import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from nld_train.errors import UserError

METADATA = ".metadata"
STORED = ".distcp"  # suffix of the files whose contents `.metadata` lists
# Files that torch.load is meant to read, by their names or by how they begin: a zip file, or a pickle.
PICKLED_SUFFIXES, PICKLED_STARTS = (".pt", ".pth", ".pkl", ".bin"), (b"PK\x03\x04", b"\x80")
EXTRA_STATE = "_extra_state"  # tensors whose bytes Transformer Engine may unpickle; those of a bfloat16 run are empty
OF_METADATA = {
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "pathlib": {"PosixPath"},
}
# Beside torch's own: the states of random generators hold arrays.
OF_OBJECTS: list[Any] = [numpy.ndarray, numpy.dtype, type(numpy.dtype("uint32")), numpy.empty(0).__reduce__()[0]]
# What readers of pickles raise for bytes that are none.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, ImportError, MemoryError, pickle.UnpicklingError),
)
NAMED = re.compile(r"GLOBAL (\S+)")  # in torch's refusal


class ForeignClassError(pickle.UnpicklingError):
    """A pickle names something that no checkpoint of ours does."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in OF_METADATA.get(module, ()):
            raise ForeignClassError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def read_checkpoint_metadata(folder: Path) -> Metadata:
    """The `.metadata` of a torch_dist checkpoint: which tensors and objects it holds, and where.

    Raises: UserError where it is missing, is no such file, or names a class or a file that none of ours does.
    """
    path = folder / METADATA
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        _check_metadata_form(metadata)
    except UNREADABLE as error:
        raise _pickle_refusal(path, error) from None
    return metadata


def check_checkpoint_pickles(folder: Path) -> None:
    """Read every pickle of a checkpoint as data, before Megatron reads it. Raises: UserError, which names the file and
    the class."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != STORED):
        if path.name == METADATA:
            _check_stored_objects(path.parent)
        elif path.name.endswith(METADATA):
            raise UserError(f"{path} is the {METADATA} of one rank", "one for all ranks", "use a checkpoint of ours")
        elif _is_pickled(path):
            _load_as_data(path, path.read_bytes())


def _check_metadata_form(metadata: object) -> None:
    """Raises: ValueError for what torch would stumble over, and for files outside of the checkpoint's folder."""
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise ValueError("no metadata of a checkpoint")
    for name, stored in metadata.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(stored, TensorStorageMetadata | BytesStorageMetadata):
            raise ValueError(f"{name!r} is neither tensor nor object")
        if EXTRA_STATE in name and not isinstance(stored, BytesStorageMetadata):
            raise ValueError(f"{name} is a tensor")
    for index, place in metadata.storage_data.items():
        if not isinstance(index, MetadataIndex) or index.fqn not in metadata.state_dict_metadata:
            raise ValueError(f"{index!r} is not among its tensors and objects")
        if Path(place.relative_path).name != place.relative_path or min(place.offset, place.length) < 0:
            raise ValueError(f"{index.fqn} lies outside of the folder, in {place.relative_path}")


def _check_stored_objects(folder: Path) -> None:
    """Read the objects that lie between the tensors: random states, and what Megatron saves for all ranks."""
    for name, path, content in _stored_objects(folder):
        value = _load_as_data(path, content, f" ({name})")
        if EXTRA_STATE in name and not _is_empty_state(value):
            raise _refusal(f"{path} ({name}) holds a state that Transformer Engine may unpickle")


def _stored_objects(folder: Path) -> Iterator[tuple[str, Path, bytes]]:
    """Name, file and bytes of every object of a checkpoint that is no tensor."""
    metadata = read_checkpoint_metadata(folder)
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
            path = folder / place.relative_path
            try:
                with path.open("rb") as file:
                    file.seek(place.offset)
                    yield index.fqn, path, file.read(place.length)
            except OSError as error:
                raise _pickle_refusal(path, error) from None


def _is_empty_state(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(part is None or (isinstance(part, torch.Tensor) and not part.numel()) for part in parts)


def _is_pickled(path: Path) -> bool:
    if path.suffix in PICKLED_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLED_STARTS)


def _load_as_data(path: Path, content: bytes, inside: str = "") -> object:
    """What torch.load makes of the bytes. Raises: UserError where they name anything but torch's own data."""
    try:
        with torch.serialization.safe_globals(OF_OBJECTS):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _pickle_refusal(path, error, inside) from None


def _pickle_refusal(path: Path, error: BaseException, inside: str = "") -> UserError:
    """The refusal of a file that a reader of data has not read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"no {path.name} in {path.parent}", "a torch_dist checkpoint of Megatron", "check the path")
    found = NAMED.search(str(error))
    if found is not None:
        return _refusal(f"{path}{inside} names {found[1]}, which reading it would run")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return _refusal(f"{path}{inside} cannot be read as data: {reason}")


def _refusal(got: str) -> UserError:
    return UserError(
        got, "what `nld train` and `nld convert import` save", "do not use this checkpoint, or copy it from its source"
    )

"""Reading and writing safetensors files piece by piece.

The safetensors library maps a whole file into memory, and writes only what is in memory whole; here no more than one
piece is. The format: 8 bytes of header length; a JSON header with dtype, shape and byte range of every tensor; the
data.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor

from nld_train.convert.weight_table import HFTensor, Shape
from nld_train.errors import UserError
from nld_train.json_file import parse_json_object

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
ALIGNMENT = 8  # bytes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: torch.dtype
    shape: Shape
    start: int  # byte of the file


class SafetensorsFile:
    """A file opened for reading, tensor by tensor or by rows.

    Raises: UserError for a file that is missing, truncated or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, start = self._header()
        self.entries = {name: self._entry(name, said, start) for name, said in header.items()}
        self._check_gapless(start)

    def _header(self) -> tuple[dict[str, Any], int]:
        if not self.path.is_file():
            raise UserError(f"no {self.path.name} in {self.path.parent}", "the weights of the model", "copy it again")
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > self.path.stat().st_size - LENGTH_BYTES:
                raise self._broken("is shorter than its header")
            header = parse_json_object(file.read(length), f"the header of {self.path}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._broken("has metadata that are no texts by name")
        return header, LENGTH_BYTES + length

    def _entry(self, name: str, said: object, start: int) -> TensorEntry:
        if not isinstance(said, dict) or set(said) != {"dtype", "shape", "data_offsets"}:
            raise self._broken(f"describes {name} by {str(said)[:60]}")
        kind, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
        if not isinstance(kind, str) or kind not in DTYPES:
            raise UserError(f"{self.path}: {name} has the dtype {kind}", ", ".join(DTYPES), "use unquantised weights")
        if not are_counts(shape) or not are_counts(offsets) or len(offsets) != 2:
            raise self._broken(f"gives {name} the shape {shape} and the bytes {offsets}")
        first, last = offsets
        entry = TensorEntry(DTYPES[kind], tuple(shape), start + first)
        if last - first != tensor_bytes(entry.dtype, entry.shape):
            raise self._broken(f"gives {name} {last - first} bytes for the shape {shape}")
        return entry

    def _check_gapless(self, start: int) -> None:
        """Every byte of the data belongs to one tensor, as in every file that the library writes or reads."""
        end = start
        for entry in sorted(self.entries.values(), key=lambda entry: (entry.start, prod(entry.shape))):
            if entry.start != end:
                raise self._broken(f"has tensors that overlap, or a gap between them, at byte {end:,}")
            end += tensor_bytes(entry.dtype, entry.shape)
        found = self.path.stat().st_size
        if found != end:
            raise self._broken(f"has {found:,} bytes of {end:,}")

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}", "a whole safetensors file", "copy or download it again")

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """Rows first..last (None: the end) of a tensor as stored: [last - first, ...]."""
        entry = self.entries[name]
        rows = range(entry.shape[0])[first:last]
        row_bytes = tensor_bytes(entry.dtype, entry.shape[1:])
        raw = torch.empty(len(rows) * row_bytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(entry.start + rows.start * row_bytes)
            count = file.readinto(memoryview(raw.numpy()))
        assert count == len(raw), f"{self.path} became shorter while it was read"
        return raw.view(entry.dtype).view(len(rows), *entry.shape[1:])

    def read_whole(self, name: str) -> Tensor:
        """A tensor as stored, of any shape, a scalar [] too."""
        entry = self.entries[name]
        if entry.shape:
            return self.read(name)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            return torch.frombuffer(bytearray(file.read(entry.dtype.itemsize)), dtype=entry.dtype).reshape(())


def are_counts(values: object) -> TypeGuard[list[int]]:
    """Whether a value of a JSON file is a list of whole numbers from 0 on."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def tensor_bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Bytes."""
    return dtype.itemsize * prod(shape)


def write_safetensors(path: Path, parts: Sequence[HFTensor], dtype: torch.dtype, pieces: Iterable[Tensor]) -> None:
    """Write tensors of one dtype from `pieces`, consecutive row ranges [rows, ...] in the order of `parts`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        start, end = end, end + tensor_bytes(dtype, part.shape)
        header[part.name] = {"dtype": NAMES[dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        written = sum(write_tensor_bytes(file, piece.to(dtype)) for piece in pieces)
    assert written == end, f"{written} bytes for a header of {end}"


def write_tensor_bytes(file: IO[bytes], piece: Tensor) -> int:
    """Append the numbers of a tensor of any shape. Returns: the bytes that were written."""
    return file.write(memoryview(piece.contiguous().flatten().view(torch.uint8).numpy()))

"""PREFIX.supervised.bin: which tokens of a chat file count, one byte per token of PREFIX.bin, in the same order."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nld_train.data.token_file import HashedFile, file_chunks, map_array, read_token_index
from nld_train.errors import UserError

SUFFIX = ".supervised.bin"
REMAKE = "make the files again with `nld data prepare-chat`"


def supervised_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}{SUFFIX}")


class SupervisionWriter(HashedFile):
    """Streams the supervision of documents into PREFIX.supervised.bin, beside a TokenFileWriter of the same prefix."""

    def __init__(self, prefix: str | Path) -> None:
        super().__init__(supervised_path(prefix))
        self.supervised_tokens = 0

    def append(self, supervised: NDArray[np.bool_]) -> None:
        """Add one document, `supervised` [n], n >= 1. Nothing predicts its first token: that one never counts."""
        assert supervised.dtype == np.bool_, f"supervision is bool, got {supervised.dtype}"
        assert supervised.ndim == 1 and supervised.size > 0, f"a document is a non-empty row, got {supervised.shape}"
        assert not supervised[0], "the first token of a document cannot be supervised"
        self._count(supervised.tobytes())

    def append_file(self, prefix: str | Path) -> None:
        """Add every document of another file, block by block."""
        for block in file_chunks(supervised_path(prefix)):
            self._count(block)

    def finish(self) -> str:
        """Close the file; returns its SHA-256."""
        return self._close()

    def _count(self, data: bytes) -> None:
        self._write(data)
        self.supervised_tokens += data.count(1)


class Supervision:
    """The supervision of a chat file, memory-mapped: `of(document)` goes with `TokenFile(prefix)[document]`."""

    def __init__(self, prefix: str | Path) -> None:
        """Raises UserError where a file is missing or its size disagrees with the index."""
        index = read_token_index(prefix)
        path = supervised_path(prefix)
        if not path.is_file():
            raise UserError(
                f"no file {path}", "a .supervised.bin beside the .bin and .idx", "copy it along, or " + REMAKE
            )
        self.lengths = index.lengths
        self.tokens = int(index.lengths.sum(dtype=np.int64))
        size = path.stat().st_size
        if size != self.tokens:
            raise UserError(f"{path} has {size} bytes", f"{self.tokens}, one for each token", REMAKE)
        self.flat: NDArray[np.bool_] = map_array(path, np.dtype(np.bool_), 0, self.tokens)  # [tokens] all documents
        self._starts = index.offsets
        self._itemsize = index.dtype.itemsize

    def __len__(self) -> int:
        return len(self.lengths)

    def of(self, document: int) -> NDArray[np.bool_]:
        """Which tokens of a document count: [n] bool, read-only."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        start = int(self._starts[document]) // self._itemsize
        return self.flat[start : start + int(self.lengths[document])]

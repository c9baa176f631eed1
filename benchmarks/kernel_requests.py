"""How often backend "te" asks Transformer Engine for a kernel over packed batches: by exact lengths, and by classes.

    .venv/bin/python benchmarks/kernel_requests.py out/demo/data/chat                   # 1,000 batches of 4 rows of 256
    .venv/bin/python benchmarks/kernel_requests.py out/demo/data/chat --length 16384 --rows 1 --block 32

Rows are packed as training packs them, each time from a random half of the file's conversations, so that rows of any
length are new ones. There are three questions a batch: the clean half, the triangles and the windows. By exact lengths
every new tuple of them is a question, with the last 64 answers kept, and every batch one more by DotProductAttention,
which keeps the last answer alone. By classes is what the backend asks. No GPU is needed: the answers are not.
"""

import argparse
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch

from nld_train.attention.fused.decomposition import AttentionPiece, clean_pieces, shifted_pieces, window_pieces
from nld_train.attention.fused.te_call import KernelQuestion, TransformerEngineCall
from nld_train.data.packing import pack_documents
from nld_train.data.token_file import read_token_index
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout

CPU = torch.device("cpu")
KEPT = 64  # exact answers that were kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", help="a chat file, without its ending")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch (default: %(default)s)")
    parser.add_argument("--block", type=int, default=16, help="tokens of a block (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=1000, help="default: %(default)s")
    args = parser.parse_args()
    exact, asked_exactly, classes = OrderedDict[object, None](), 0, set[KernelQuestion]()
    batches = packed_batches(args.prefix, args.length, args.rows)
    for _ in range(args.batches):
        spec = MaskSpec(RowLayout(args.length, args.block, dual=True), documents=next(batches)).as_single_row()
        asked_exactly += 1  # DotProductAttention's
        for piece in (*shifted_pieces(spec, CPU), *window_pieces(spec, CPU)):
            key = (piece.segments, piece.window)
            asked_exactly += key not in exact
            exact[key] = exact.pop(key, None)
            if len(exact) > KEPT:
                exact.popitem(last=False)
        classes |= {question_of(piece) for piece in every_piece(spec)}
    print(f"{args.batches:,} batches of {args.rows} packed rows of {args.length:,}, block {args.block}")
    print(f"questions by exact lengths: {asked_exactly:,}; by classes: {len(classes):,}")


def every_piece(spec: MaskSpec) -> tuple[AttentionPiece, ...]:
    return (*clean_pieces(spec), *shifted_pieces(spec, CPU), *window_pieces(spec, CPU))


def question_of(piece: AttentionPiece) -> KernelQuestion:
    """Of heads as the 8B's: 32 query heads and 8 key heads of 128."""
    return TransformerEngineCall(piece.segments, piece.window, 128**-0.5, (32, 8, 128), torch.bfloat16, CPU).question()


def packed_batches(prefix: str, length: int, rows: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Document lengths of micro-batches, row by row, padding included; without end."""
    draw = np.random.default_rng(1)
    lengths = np.asarray(read_token_index(prefix).lengths, np.int64)
    lengths = lengths[lengths <= length]
    while True:
        half = draw.permutation(lengths)[: len(lengths) // 2]
        packed = pack_documents(half, length)
        order = draw.permutation(len(packed))
        for start in range(0, len(order) - rows + 1, rows):
            yield tuple(_row_lengths(half[packed[int(row)]], length) for row in order[start : start + rows])


def _row_lengths(documents: np.ndarray, length: int) -> tuple[int, ...]:
    rest = length - int(documents.sum())
    return (*documents.tolist(), *([rest] if rest else []))


if __name__ == "__main__":
    main()

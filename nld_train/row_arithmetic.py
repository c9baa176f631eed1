"""Arithmetic of one row that both the tensors and the dry run need. Plain integers: planning imports neither torch nor
numpy, so that `nld train --dry-run` answers at once.
"""

CHUNK_LOGITS = 1 << 25  # logits (LM-head rows x tokens of the vocabulary) of one chunk: 128 MiB of float32
# Most patches of one call of the vision tower, unless one image has more. transformers' tower lets all patches of a
# call attend to each other under a dense mask. Of so many, in the widths of Ministral-3, the products of attention
# cost half of what the linear maps cost, and the mask takes 34 MB in bf16; of 16,384 cells it would take 8.6 GB.
MOST_PATCHES = 4096
PADDING_TOKEN = 0  # at the end of either half; any id would do: nobody sees it and it is no target
CHUNK_MULTIPLE = 128  # a chunk is a multiple of this many tokens wide, which matrix products run fastest on


def count_visible_pairs(length: int, block_size: int, dual: bool, noisy_causal: bool = False) -> int:
    """(query, key) pairs that attention computes in a row of one document: the True entries of its dense table. O(1).

    A clean token sees itself and all clean tokens before it: L(L+1)/2 pairs. A noisy token of block b sees the noisy
    tokens of its own block and the b * block_size clean tokens of earlier blocks. So a whole block has
    block_size**2 * (b + 1) pairs, and each token of a last, shorter block sees as many places as the row is long.
    """
    clean = length * (length + 1) // 2
    if not dual:
        return clean
    blocks, rest = divmod(length, block_size)
    noisy = block_size**2 * blocks * (blocks + 1) // 2 + rest * length
    if noisy_causal:  # the later tokens of the own block are not seen
        noisy -= blocks * (block_size * (block_size - 1) // 2) + rest * (rest - 1) // 2
    return clean + noisy


def chunk_width(rows: int) -> int:
    """Tokens of the vocabulary in one chunk of the LM-head loss over `rows` positions."""
    return max(1, CHUNK_LOGITS // max(1, rows) // CHUNK_MULTIPLE) * CHUNK_MULTIPLE


def chunk_rows(columns: int) -> int:
    """Rows in one chunk of an LM-head loss that takes whole rows of `columns` logits at a time."""
    return max(1, CHUNK_LOGITS // columns)

"""What one row is to the model: positions, and pairs that see each other. Arithmetic only."""

from nld_train.config import RunConfig


def row_positions(run: RunConfig) -> int:
    """S: positions of a row as the model gets it, 2L as [noisy | clean] or L."""
    return run.data.sequence_length * (2 if run.diffusion.dual else 1)


def document_pairs(length: int, block_size: int, dual: bool) -> int:
    """(query, key) pairs that attention computes in a row of one document.

    A clean token sees itself and all before it: L(L+1)/2 pairs. A noisy token of block b sees the noisy tokens of its
    own block and b * block_size clean ones: a whole block has block_size**2 * (b + 1) pairs, and each token of a last,
    shorter block sees as many places as the row is long.
    """
    clean = length * (length + 1) // 2
    if not dual:
        return clean
    blocks, rest = divmod(length, block_size)
    return clean + block_size**2 * blocks * (blocks + 1) // 2 + rest * length


def run_visible_pairs(run: RunConfig) -> int:
    """`visible_pairs` of a run's rows, each as one document: an upper bound under diffusion.document_mask."""
    return document_pairs(run.data.sequence_length, run.diffusion.block_size, run.diffusion.dual)


def mask_density(run: RunConfig) -> float:
    """The visible share of all S * S pairs."""
    return run_visible_pairs(run) / row_positions(run) ** 2


def micro_batches(run: RunConfig) -> int:
    """Micro-batches of one data-parallel rank in one step."""
    return run.train.global_batch // (run.train.micro_batch * run.parallel.data)


def run_tokens(run: RunConfig) -> int:
    """Tokens of the whole run: row tokens, each counted once however often the model is given it."""
    return run.train.iterations * run.train.global_batch * run.data.sequence_length

"""What one row is to the model: positions, and pairs that see each other. Arithmetic only."""

from nld_train.config import RunConfig
from nld_train.row_arithmetic import count_visible_pairs


def row_positions(run: RunConfig) -> int:
    """S: positions of a row as the model gets it, L_text + L as [noisy text | clean] (2L without images) or L."""
    return run.positions


def run_visible_pairs(run: RunConfig) -> int:
    """Visible pairs of one of the run's rows, taken as one document: an upper bound under diffusion.document_mask.

    Beside images it is taken to be [images | text]: every noisy token sees all L - L_text tokens of the images too.
    """
    length, text, size = run.data.sequence_length, run.data.noisy_length, run.diffusion.block_size
    clean = count_visible_pairs(length, size, dual=False)
    if not run.diffusion.dual:
        return clean
    noisy = count_visible_pairs(text, size, dual=True) - count_visible_pairs(text, size, dual=False)
    return clean + noisy + text * (length - text)


def symmetric_pairs(run: RunConfig) -> int:
    """Visible pairs of the same row as [noisy | clean] of L tokens each, the images in both halves."""
    return count_visible_pairs(run.data.sequence_length, run.diffusion.block_size, dual=True)


def mask_density(run: RunConfig) -> float:
    """The visible share of all S * S pairs."""
    return run_visible_pairs(run) / row_positions(run) ** 2


def micro_batches(run: RunConfig) -> int:
    """Micro-batches of one data-parallel rank in one step."""
    return run.train.global_batch // (run.train.micro_batch * run.parallel.data)


def run_tokens(run: RunConfig) -> int:
    """Tokens of the whole run: row tokens, each counted once however often the model is given it."""
    return run.train.iterations * run.train.global_batch * run.data.sequence_length

"""What one row is to the model: positions, pairs that see each other, LM-head rows. Arithmetic only."""

from nld_train.config import RunConfig
from nld_train.row_arithmetic import count_visible_pairs


def row_positions(run: RunConfig) -> int:
    """S: positions of a row as the model gets it, 2L as [noisy | clean] or L."""
    return run.data.sequence_length * (2 if run.diffusion.dual else 1)


def run_visible_pairs(run: RunConfig) -> int:
    """Visible pairs of one of the run's rows, taken as one document: an upper bound under diffusion.document_mask."""
    return count_visible_pairs(run.data.sequence_length, run.diffusion.block_size, run.diffusion.dual)


def mask_density(run: RunConfig) -> float:
    """The visible share of all S * S pairs."""
    return run_visible_pairs(run) / row_positions(run) ** 2


def expected_head_rows(run: RunConfig) -> float:
    """LM-head rows of a row of supervised tokens: L clean ones, and the masked ones.

    Every noise law has E[t] = 1/2, so E[p] = (1 - eps)/2 + eps = (1 + eps)/2 [paper eq. 2].
    """
    if run.drafter is not None:
        return most_head_rows(run)
    masked = (1 + run.diffusion.noise_eps) / 2 if run.diffusion.dual else 0.0
    return run.data.sequence_length * (1 + masked)


def most_head_rows(run: RunConfig) -> int:
    """LM-head rows of a row at noise level 1, where every token is masked: what memory must hold. Of a drafter: the
    drafted places of its blocks, which its verifier judges one by one."""
    if run.drafter is not None:
        size, most = run.diffusion.block_size, run.drafter.blocks_per_row
        blocks = run.data.sequence_length // size
        return (blocks if most is None else min(blocks, most)) * (size - 1)
    return row_positions(run)


def micro_batches(run: RunConfig) -> int:
    """Micro-batches of one data-parallel rank in one step."""
    return run.train.global_batch // (run.train.micro_batch * run.parallel.data)


def run_tokens(run: RunConfig) -> int:
    """Tokens of the whole run: row tokens, each counted once however often the model is given it."""
    return run.train.iterations * run.train.global_batch * run.data.sequence_length

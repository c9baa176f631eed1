"""How wide the LM head's chunks are: numbers alone, so that a run can be planned without torch."""

CHUNK_LOGITS = 1 << 25  # rows x vocabulary of one chunk: 128 MiB of float32
COLUMNS = 128  # chunks are a multiple of this many tokens wide, as matrix products like it


def chunk_width(rows: int) -> int:
    """Tokens of the vocabulary in one chunk."""
    return max(1, CHUNK_LOGITS // max(1, rows) // COLUMNS) * COLUMNS

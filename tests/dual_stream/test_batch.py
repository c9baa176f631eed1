import pytest
import torch

from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.noise.corrupt import corrupt_row
from nld_train.noise.law import LAWS
from nld_train.types import NoisyRow, Row

MASK = 9


def row(index: int, supervised: str, documents: list[int] | None = None, first: int = 10) -> Row:
    """Tokens first, first + 1, ...; `supervised` one character per token, x where it counts."""
    tokens = torch.arange(first, first + len(supervised))
    flags = torch.tensor([flag == "x" for flag in supervised])
    return Row(index, tokens, flags, None if documents is None else torch.tensor(documents))


def noisy(clean: Row, masked: str, p: float) -> NoisyRow:
    z = torch.tensor([flag == "x" for flag in masked])
    return NoisyRow(clean, torch.where(z, MASK, clean.tokens[:-1]), z, torch.full((len(masked),), p))


def config(**settings) -> DiffusionConfig:
    return DiffusionConfig(**{"block_size": 2, "mask_token_id": MASK} | settings)


# Two rows of four tokens (and the fifth, a target only). Row 5: a prompt of two, an answer of three. Row 6: all counts.
ROWS = [noisy(row(5, "..xxx"), "..x.", 0.5), noisy(row(6, "xxxxx", first=20), "x..x", 0.25)]


def test_joint_batch_written_out():
    batch = collate_rows(ROWS, config())
    assert batch.input_ids.tolist() == [[10, 11, 9, 13, 10, 11, 12, 13], [9, 21, 22, 9, 20, 21, 22, 23]]
    assert batch.documents is None
    # Row 5, clean positions 1, 2, 3 predict its tokens 2, 3, 4; input positions 4 + 1, 4 + 2, 4 + 3.
    assert batch.ar_positions.tolist() == [5, 6, 7, 12, 13, 14, 15]
    assert batch.ar_targets.tolist() == [12, 13, 14, 21, 22, 23, 24]
    assert batch.ar_weights.tolist() == [1.0] * 7
    # Noisy places predict their own token.
    assert batch.diffusion_positions.tolist() == [2, 8, 11]
    assert batch.diffusion_targets.tolist() == [12, 20, 23]
    assert batch.diffusion_weights.tolist() == [2.0, 4.0, 4.0]
    assert batch.denominator == 7 and batch.maskable == 2 + 4
    assert batch.sample_indices.tolist() == [5, 6]


def test_ar_batch_written_out():
    batch = collate_rows([row.row for row in ROWS], config(alpha=0.0))
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 22, 23]]
    assert batch.ar_positions.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert batch.ar_targets.tolist() == [12, 13, 14, 21, 22, 23, 24]
    assert batch.denominator == 7
    assert [part.numel() for part in (batch.diffusion_positions, batch.diffusion_targets, batch.diffusion_weights)] == [
        0
    ] * 3


def test_sequence_average_weighs_rows_equally_and_drops_empty_ones():
    only_the_first = noisy(row(7, "x...."), "x...", 0.5)  # token 0 is nobody's target: N = 0
    batch = collate_rows([*ROWS, only_the_first], config(average="sequence"))
    third, quarter = torch.tensor(1 / 3).item(), 0.25
    assert batch.ar_weights.tolist() == [third] * 3 + [quarter] * 4
    assert batch.diffusion_positions.tolist() == [2, 8, 11]
    assert batch.diffusion_weights.tolist() == [2 * third, 4 * quarter, 4 * quarter]
    assert batch.denominator == 2 and batch.maskable == 6


def test_token_average_keeps_the_masks_of_a_row_without_targets():
    batch = collate_rows([noisy(row(7, "x...."), "x...", 0.5)], config())
    assert batch.diffusion_positions.tolist() == [0] and batch.ar_positions.numel() == 0
    assert batch.denominator == 0 and batch.maskable == 1


def test_masked_documents_travel_and_their_last_tokens_have_no_target():
    packed = noisy(row(1, "xxxxx", [0, 0, 1, 1]), "x...", 0.5)
    whole = noisy(row(2, "xxxxx"), "....", 0.5)
    batch = collate_rows([packed, whole], config(document_mask=True))
    assert batch.documents.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch.ar_positions.tolist() == [4, 6, 7, 12, 13, 14, 15]  # not 5: token 1 ends document 0
    assert batch.denominator == 8 == batch.maskable, "the first token of document 1 is supervised, though no AR target"


def test_without_a_document_mask_a_packed_row_is_one_text():
    batch = collate_rows([noisy(row(1, "xxxxx", [0, 0, 1, 1]), "x...", 0.5)], config())
    assert batch.documents is None and batch.ar_positions.tolist() == [4, 5, 6, 7]


def test_a_mask_token_of_the_text_is_not_maskable():
    assert collate_rows([noisy(row(1, "xxxxx"), "x...", 0.5)], config(mask_token_id=12)).maskable == 3


def test_every_tensor_has_the_type_that_was_promised():
    for batch in (collate_rows(ROWS, config()), collate_rows([row.row for row in ROWS], config(alpha=0.0))):
        whole = (
            batch.input_ids,
            batch.ar_positions,
            batch.ar_targets,
            batch.diffusion_positions,
            batch.diffusion_targets,
        )
        assert all(part.dtype == torch.int64 for part in (*whole, batch.sample_indices))
        real = (batch.ar_weights, batch.diffusion_weights, batch.denominator, batch.maskable)
        assert all(part.dtype == torch.float32 for part in real)
        assert batch.denominator.shape == batch.maskable.shape == ()


@pytest.mark.parametrize("law", LAWS)
def test_masks_of_a_row_are_the_same_in_every_batch(law):
    """Rows met one by one, in pairs, in fours, all at once and dealt out to four ranks."""
    settings = config(noise_law=law)
    groupings = [
        [[i] for i in range(8)],
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [list(range(8))],
    ]
    groupings.append([[rank, rank + 4] for rank in (3, 1, 0, 2)])
    seen = []
    for grouping in groupings:
        half = {}
        for group in grouping:
            batch = collate_rows([corrupt_row(row(i, "x" * 33), settings, "train", 8) for i in group], settings)
            half |= dict(zip(batch.sample_indices.tolist(), batch.input_ids[:, :32].tolist(), strict=True))
        seen.append(half)
    assert all(half == seen[0] for half in seen)
    assert len({tuple(ids) for ids in seen[0].values()}) == 8


def test_rows_without_noise_are_refused_in_a_joint_batch_and_the_reverse():
    with pytest.raises(AssertionError, match="NoisyRows"):
        collate_rows([ROWS[0].row], config())
    with pytest.raises(AssertionError, match="NoisyRows"):
        collate_rows(ROWS, config(alpha=0.0))

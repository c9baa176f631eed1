import pytest
import torch

from nld_train.config import NoiseLaw
from nld_train.noise.law import LAWS, NoiseSample, draw_mask, stratum_permutation

EPS = 1e-3
BLOCKS = torch.arange(24) // 4


def sample(index: int, purpose: str = "train", global_batch: int = 16, level_rows: int = 1) -> NoiseSample:
    return NoiseSample(1234, purpose, index, global_batch, BLOCKS, level_rows)


def levels(law: NoiseLaw, indices: range) -> torch.Tensor:
    """[rows, L]: the noise level t behind every p."""
    p = torch.stack([draw_mask(law, EPS, sample(index))[0] for index in indices]).double()
    return (p - EPS) / (1 - EPS)


@pytest.mark.parametrize("law", LAWS)
def test_p_is_float32_between_eps_and_one(law):
    p = torch.stack([draw_mask(law, EPS, sample(index))[0] for index in range(500)])
    assert p.dtype == torch.float32 and p.shape == (500, 24)
    assert p.min() >= torch.tensor(EPS) and p.max() <= 1
    assert p.min() < 0.02 and p.max() > 0.98


@pytest.mark.parametrize("law", ["uniform", "stratified", "complementary"])
def test_one_level_per_row(law):
    t = levels(law, range(50))
    assert torch.equal(t, t[:, :1].expand_as(t))
    assert t[:, 0].unique().numel() == 50


def test_rows_that_share_a_level_draw_masks_of_their_own():
    drawn = [draw_mask("uniform", EPS, sample(index, level_rows=4)) for index in range(32)]
    t = torch.stack([p for p, _ in drawn])[:, 0].view(8, 4)
    assert torch.equal(t, t[:, :1].expand_as(t)) and t.unique().numel() == 8
    assert torch.equal(t[1, :1], draw_mask("uniform", EPS, sample(4))[0][:1]), "the level is the first row's own"
    # A level near 0 or 1 masks nothing or everything in all of its rows.
    assert torch.stack([masked for _, masked in drawn]).unique(dim=0).shape[0] > 16


def test_per_block_gives_every_block_a_level_of_its_own():
    t = levels("per_block", range(50))
    assert torch.equal(t, t[:, ::4].repeat_interleave(4, 1))
    assert t.unique().numel() == 50 * 6


def test_per_block_follows_the_blocks_of_documents():
    uneven = NoiseSample(1, "train", 0, 1, torch.tensor([0, 0, 1, 2, 2]), 1)
    p = draw_mask("per_block", EPS, uneven)[0].tolist()
    assert p[0] == p[1] and p[3] == p[4] and len(set(p)) == 3


def test_stratified_puts_one_row_of_a_global_batch_in_every_stratum():
    t = levels("stratified", range(16 * 20))[:, 0].view(20, 16)
    strata_hit = (t * 16).long()
    assert torch.equal(strata_hit.sort(1).values, torch.arange(16).expand(20, 16))
    assert strata_hit.unique(dim=0).shape[0] == 20  # a new permutation in every global batch
    within = (t * 16) % 1
    assert within.min() < 0.02 and within.max() > 0.98 and abs(within.mean() - 0.5) < 0.08


def test_strata_depend_on_seed_purpose_and_step():
    mine = stratum_permutation(1, "train", 0, 64)
    assert sorted(mine) == list(range(64))
    assert (
        len(
            {
                mine,
                stratum_permutation(2, "train", 0, 64),
                stratum_permutation(1, "validation", 0, 64),
                stratum_permutation(1, "train", 1, 64),
            }
        )
        == 4
    )


def test_complementary_pairs_are_antithetic_and_cover_every_place():
    for pair in range(200):
        p, first = draw_mask("complementary", EPS, sample(2 * pair))
        q, second = draw_mask("complementary", EPS, sample(2 * pair + 1))
        torch.testing.assert_close(
            p.double() + q.double(), torch.full_like(p, 1 + EPS, dtype=torch.float64), rtol=0, atol=2e-7
        )
        assert (first | second).all()


def test_complementary_thresholds_mirror_onto_the_same_grid():
    even, odd = (LAWS["complementary"](sample(index)).threshold for index in (10, 11))
    assert torch.equal(even + odd, torch.full_like(even, 1 - 2.0**-53))
    assert odd.min() >= 0 and odd.max() < 1
    assert torch.equal(odd * 2**53, (odd * 2**53).round())


@pytest.mark.parametrize("law", LAWS)
def test_purposes_draw_independent_noise(law):
    p, masked = zip(*(draw_mask(law, EPS, sample(index, "train")) for index in range(2000)), strict=True)
    q, other = zip(*(draw_mask(law, EPS, sample(index, "validation")) for index in range(2000)), strict=True)
    limit = 5 / 1000**0.5  # complementary rows come in pairs: 1000 are independent
    assert abs(torch.corrcoef(torch.stack([torch.stack(p)[:, 0], torch.stack(q)[:, 0]]))[0, 1]) < limit
    pair = torch.stack([torch.stack(masked)[:, 5].float(), torch.stack(other)[:, 5].float()])
    assert abs(torch.corrcoef(pair)[0, 1]) < limit


def test_draw_keeps_to_the_published_law():
    s = sample(3)
    t = LAWS["uniform"](s).level
    assert draw_mask("uniform", 0.25, s)[0][0] == (0.75 * t + 0.25).float()[0]
    assert draw_mask("uniform", 0.999999, s)[1].sum() == 24

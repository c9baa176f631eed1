import pytest
import torch

from nld_train.noise.law import LAWS, NoiseSample, draw_mask
from nld_train.objectives.choose import objective_of
from nld_train.plan import row_counts


def pairs_by_rule(length: int, size: int, dual: bool) -> int:
    """Counted one by one from the law of design section 3."""
    places = [("clean", i) for i in range(length)] + ([("noisy", i) for i in range(length)] if dual else [])

    def sees(query: tuple[str, int], key: tuple[str, int]) -> bool:
        (kind, i), (other, j) = query, key
        if kind == "clean":
            return other == "clean" and j <= i
        return j // size == i // size if other == "noisy" else j // size < i // size

    return sum(sees(query, key) for query in places for key in places)


def test_mask_density_is_the_share_of_the_doubled_row(small_run) -> None:
    assert row_counts.mask_density(small_run()) == pairs_by_rule(32, 8, True) / 64**2
    assert row_counts.mask_density(small_run(alpha=0.0)) == pairs_by_rule(32, 8, False) / 32**2


@pytest.mark.parametrize("law", list(LAWS))
def test_expected_head_rows_are_the_mean_over_every_noise_law(law, small_run) -> None:
    run = small_run()
    length, draws = run.data.sequence_length, 1000
    masked = 0
    for index in range(draws):
        blocks = torch.arange(length) // run.diffusion.block_size
        sample = NoiseSample(seed=1, purpose="train", index=index, global_batch=8, blocks=blocks, level_rows=1)
        masked += int(draw_mask(law, run.diffusion.noise_eps, sample)[1].sum())
    # A row's count has a standard deviation of at most L / 2: five of them, over the draws.
    assert abs(length + masked / draws - objective_of(run).expected_head_rows()) < 5 * (length / 2) / draws**0.5


def test_stage_1_needs_the_clean_rows_alone(small_run) -> None:
    run = small_run(alpha=0.0)
    objective = objective_of(run)
    assert objective.expected_head_rows() == objective.most_head_rows() == row_counts.row_positions(run) == 32


def test_a_step_is_cut_into_micro_batches_over_the_data_ranks(small_run) -> None:
    assert row_counts.micro_batches(small_run(global_batch=64, micro_batch=2, tensor=2)) == 8
    assert row_counts.run_tokens(small_run(global_batch=64)) == 10 * 64 * 32

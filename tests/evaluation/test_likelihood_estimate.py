"""The likelihoods of a window against their definitions: torch's cross-entropy, and the bound over all masks."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from nld_train.errors import UserError
from nld_train.evaluation.likelihood_estimate import (
    NoiseSettings,
    bound_nats,
    causal_nats,
    check_noise_settings,
    denoising_nats,
    draw_window_noise,
    window_record,
)
from nld_train.evaluation.likelihood_figures import likelihood_figures
from nld_train.evaluation.likelihood_windows import LikelihoodWindow
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from nld_train.hf.modeling_ministral import KVCache
from tests.decode.conftest import MASK

EPS = 1e-3
ROW = [4, 0, 5, 1, 1, 2, 0]  # a context token and 6 that count
WINDOWS = 150  # of the same tokens, each with noise of its own
LAWS = ("uniform", "stratified", "complementary")


def window(tokens: list[int], counted: list[bool] | None = None) -> LikelihoodWindow:
    flags = np.ones(len(tokens) - 1, np.bool_) if counted is None else np.array(counted)
    return LikelihoodWindow(np.array(tokens), flags, int(flags.sum()))


def exact_bound(model) -> float:
    """The mean over t ~ U(0, 1) and all 64 masks of SUM_i z_i / p * -ln p(x_i), the integral over t exact."""
    masks = torch.tensor(list(product([False, True], repeat=6)))
    nats = denoising_nats(model, torch.tensor(ROW), masks).sum(1)
    total = 0.0
    for mask, sum_of_nats in zip(masks, nats.tolist(), strict=True):
        count = int(mask.sum())
        if count:
            # P(mask) / p = p^(count - 1) (1 - p)^(6 - count), and dt = dp / (1 - eps).
            integral = (Polynomial([0, 1]) ** (count - 1) * Polynomial([1, -1]) ** (6 - count)).integ()
            total += sum_of_nats * (integral(1) - integral(EPS)) / (1 - EPS)
    return total


@pytest.fixture(scope="module")
def estimated(make_model):
    """(block size, law) -> the figures of WINDOWS windows of 8 draws, and the exact bound in nats per token."""
    found = {}
    for size in (3, 6):
        model = make_model(6, block_size=size)
        with torch.no_grad():
            exact = exact_bound(model) / 6
            for law in LAWS:
                noise = NoiseSettings(law, 8, EPS, 7, 8)
                records = [window_record(model, window(ROW), number, noise, "row") for number in range(WINDOWS)]
                found[size, law] = likelihood_figures({**vars(noise)}, records)["diffusion"], exact
    return found


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [3, 6])
def test_the_bound_is_that_of_all_masks_within_its_standard_error(estimated, size: int, law: str) -> None:
    """The windows are equal, so both errors are of the noise; 4 of them is once in 16,000 times."""
    figures, exact = estimated[size, law]
    error = figures["standard_error"]["nats_per_token"]
    assert 0 < error < 0.05 * exact
    assert abs(figures["nats_per_token"] - exact) < 4 * error
    # From within the windows alone: of stratified draws never too small on average, of the others the same.
    of_noise = figures["noise_standard_error"]["nats_per_token"]
    assert of_noise > 0.8 * error and (law == "stratified" or of_noise < 1.2 * error)


def test_stratified_and_antithetic_draws_have_a_smaller_error() -> None:
    """Where a token is the harder the more of its neighbours are masked, as for trained models: m - 1 nats each.

    The random model of the other tests is about as bad with any context: there 8 stratified draws gain 2 %.
    """
    errors = {}
    for law in LAWS:
        drawn = (draw_window_noise(n, torch.ones(6, dtype=torch.bool), NoiseSettings(law)) for n in range(1000))
        values = [(one.masked.sum(1) * (one.masked.sum(1) - 1) / one.level).mean() for one in drawn]
        errors[law] = torch.stack(values).std().item()
    assert errors["stratified"] < 0.9 * errors["uniform"] and errors["complementary"] < 0.9 * errors["uniform"]


def test_the_bound_is_above_the_likelihood_of_a_model_that_is_one_distribution(make_model) -> None:
    """A model that sees nothing gives each token its unigram probability, and there the bound is exact for any mask."""
    model = make_model(6, block_size=3)
    with torch.no_grad():
        for layer in model.encoder.layers:
            for weight in layer.parameters():
                weight.zero_()
        model.encoder.embed_tokens.weight.copy_(torch.ones(6, 1) * model.encoder.embed_tokens.weight[:1])
        logits = model.diffusion_head(model.encoder.norm(model.encoder.embed_tokens.weight[0]))
        logits[MASK] = -torch.inf
        expected = -logits.log_softmax(-1)[torch.tensor(ROW[1:])].sum().item()
        assert exact_bound(model) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [3, 4, 32])
def test_the_dual_stream_is_blocks_over_their_cached_clean_past(make_model, size: int) -> None:
    """Decoded as inference does it: block after block, one by one, over a cache of the clean tokens before."""
    model = make_model(6, block_size=size)
    tokens = torch.tensor([4, 0, 5, 1, 1, 2, 0, 5, 5, 4, 2])
    drawn = draw_window_noise(3, torch.ones(10, dtype=torch.bool), NoiseSettings("uniform", 6, EPS, 1, 6))
    with torch.no_grad():
        slow = []
        for masked, level in zip(drawn.masked, drawn.level.tolist(), strict=True):
            total = 0.0
            for first in range(1, 11, size):
                cache = KVCache(1)
                extend_cache(model, tokens[None, :first], cache)
                own = masked[first - 1 : first - 1 + size]
                block = tokens[first : first + size]
                logits = noisy_logits(model, block.masked_fill(own, MASK)[None], cache, MASK)[0]
                total += torch.nn.functional.cross_entropy(logits[own], block[own], reduction="sum").item() / level
            slow.append(total)
        fast = bound_nats(model, window(tokens.tolist()), drawn, 6)
        cut = bound_nats(model, window(tokens.tolist()), drawn, 2)
    assert max(slow) > 1 and fast == pytest.approx(slow, abs=1e-9) and cut == pytest.approx(slow, abs=1e-9)


def test_ar_is_torchs_cross_entropy(make_model) -> None:
    model = make_model(6)
    with torch.no_grad():
        logits = model(torch.tensor([ROW]), use_causal_mask=True).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(ROW[1:]), reduction="none")
        assert causal_nats(model, window(ROW)) == pytest.approx(each.sum().item(), rel=1e-12)
        some = [True, False, True, True, False, False]
        expected = each[torch.tensor(some)].sum().item()
        assert causal_nats(model, window(ROW, some)) == pytest.approx(expected, rel=1e-12)


def test_tokens_that_do_not_count_are_seen_and_never_masked() -> None:
    counted = torch.tensor([False, True, True, False, True, True])
    drawn = draw_window_noise(0, counted, NoiseSettings("complementary", 8, EPS, 1, 8))
    assert not drawn.masked[:, ~counted].any() and (drawn.masked[::2] | drawn.masked[1::2])[:, counted].all()
    assert torch.allclose(drawn.level[::2] + drawn.level[1::2], torch.tensor(1 + EPS).double())


def test_noise_belongs_to_seed_window_and_draw() -> None:
    counted = torch.ones(64, dtype=torch.bool)

    def drawn(number: int, **changes) -> torch.Tensor:
        return draw_window_noise(number, counted, NoiseSettings(**{"law": "uniform", "seed": 1} | changes)).masked

    assert torch.equal(drawn(5), drawn(5)) and torch.equal(drawn(5, draws=4), drawn(5)[:4])
    assert not torch.equal(drawn(5), drawn(6)) and not torch.equal(drawn(5), drawn(5, seed=2))
    levels = draw_window_noise(5, counted, NoiseSettings("stratified", 8)).level
    strata = ((levels - EPS) / (1 - EPS) * 8).floor()
    assert sorted(strata.tolist()) == list(range(8))


def test_what_has_no_likelihood_is_one_line(make_model) -> None:
    model = make_model(6)
    with torch.no_grad(), pytest.raises(UserError, match="row holds the mask token 3"):
        window_record(model, window([4, MASK, 1]), 0, NoiseSettings(), "row")
    model.diffusion_head.weight.data.fill_(torch.nan)
    with torch.no_grad(), pytest.raises(UserError, match="likelihood of row is no number"):
        window_record(model, window(ROW), 0, NoiseSettings(), "row")


@pytest.mark.parametrize("changes", [{"law": "uniform", "draws": 1}, {"draws": 3}, {"draws": 0}, {"eps": 0.0}])
def test_noise_that_shows_no_error_is_refused(changes) -> None:
    with pytest.raises(UserError):
        check_noise_settings(NoiseSettings(**changes))
    check_noise_settings(NoiseSettings("uniform", 3))

"""The losses of a drafter against slow transcriptions of their formulas, in loops over places and tokens in float64."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from nld_train.config import DrafterConfig
from nld_train.loss.drafter_choices import LOSSES, PlaceTerms, expected_drafts
from nld_train.loss.drafter_loss import DraftVerdicts, drafter_terms
from nld_train.loss.objective import drafter_numerator, drafter_pairs
from nld_train.loss.vocabulary import VocabularyShard
from nld_train.objective_sections import DrafterLoss

BLOCKS, PLACES, VOCABULARY, TOP, MASK, TAU = 5, 4, 30, 6, 3, 3.0
ACCEPTED = [0, 1, 2, 3, 4]  # the last block is accepted whole
CHOICES = [
    ("lk_hybrid", 1.0, 1.0),
    ("lk_hybrid", 0.7, 2.5),
    ("first_failure", 1.0, 1.0),
    ("first_failure", 0.7, 2.5),
    ("all_places", 1.0, 1.0),
    ("all_places", 0.7, 2.5),
    ("accepted_length", 1.0, 1.0),
]


def chosen(loss: DrafterLoss, decay: float = 1.0, stress: float = 1.0) -> DrafterConfig:
    return DrafterConfig(top_k=TOP, tau=TAU, loss=loss, place_decay=decay, first_error_weight=stress)


def given(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of verifier and drafter, [R, V]; at three places the verifier's argmax is the mask, no candidate."""
    generator = torch.Generator().manual_seed(seed)
    p, q = 2 * torch.randn(2, BLOCKS * PLACES, VOCABULARY, dtype=torch.float64, generator=generator)
    p[[0, 6, 19], MASK] = 50.0
    return p, q.requires_grad_()


def terms(p: Tensor, q: Tensor, drafter: DrafterConfig):
    verdicts = DraftVerdicts(p.argmax(-1).view(BLOCKS, PLACES), torch.tensor(ACCEPTED))
    return drafter_terms(p, q, verdicts, drafter, MASK, VocabularyShard())


def slow_place(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """(hybrid, cross-entropy or None, acceptance) of one place, token by token, from its logits [V] each."""
    tokens = [token for token in range(VOCABULARY) if token != MASK]
    union = {token for logits in (p, q) for token in sorted(tokens, key=lambda token: -logits[token].item())[:TOP]}

    def shares(logits: Tensor, tau: float) -> dict[int, Tensor]:
        total = sum(torch.exp(logits[token] / tau) for token in union)
        return {token: torch.exp(logits[token] / tau) / total for token in union}

    soft_p, soft_q, drawn_p, drawn_q = shares(p, TAU), shares(q, TAU), shares(p, 1), shares(q, 1)
    overlap = sum(min(soft_p[token].item(), soft_q[token].item()) for token in union)
    lam = torch.exp(torch.tensor(-0.5 * overlap, dtype=torch.float64))
    divergence = sum(soft_p[token] * torch.log(soft_p[token] / soft_q[token]) for token in union)
    variation = sum(abs(soft_p[token] - soft_q[token]) for token in union) / 2
    best = int(p.argmax())
    entropy = -torch.log(drawn_q[best]) if best in union else None
    distance = sum(abs(drawn_p[token] - drawn_q[token]) for token in union) / 2
    return lam * divergence + (1 - lam) * variation, entropy, 1 - distance


def slow_mean(values: list[tuple[float, Tensor]]) -> Tensor:
    """The mean of (weight, value); 0 of none."""
    none = torch.zeros((), dtype=torch.float64)
    return sum((weight * value for weight, value in values), none) / (sum(weight for weight, _ in values) or 1)


def slow_block(places: list, accepted: int, loss: str, decay: float, stress: float) -> Tensor:
    """The loss of one block from the `slow_place` of its places."""
    if loss == "accepted_length":
        lost = torch.tensor(float(PLACES), dtype=torch.float64)
        for last in range(PLACES):
            reached = torch.ones((), dtype=torch.float64)
            for place in range(last + 1):
                reached = reached * places[place][2]
            lost = lost - reached
        return lost
    hybrids, entropies = [], []
    for place, (hybrid, entropy, _) in enumerate(places):
        if loss != "all_places" and place > accepted:
            break
        weight = decay**place * (stress if place == accepted else 1)
        hybrids.append((weight, hybrid))
        if entropy is not None:
            entropies.append((weight, entropy))
    return slow_mean(entropies) + (slow_mean(hybrids) if loss == "lk_hybrid" else 0)


@pytest.mark.parametrize(("loss", "decay", "stress"), CHOICES)
@pytest.mark.parametrize("seed", range(2))
def test_losses_and_gradients_equal_slow_transcriptions(seed: int, loss, decay: float, stress: float) -> None:
    p, q = given(seed)
    p.requires_grad_()
    found = terms(p, q, chosen(loss, decay, stress))
    (gradient,) = torch.autograd.grad(found.loss_sum, q)
    assert torch.autograd.grad(terms(p, q, chosen(loss, decay, stress)).loss_sum, p, allow_unused=True) == (None,)
    frozen, expected = p.detach(), torch.zeros((), dtype=torch.float64)
    for block, accepted in enumerate(ACCEPTED):
        rows = range(block * PLACES, (block + 1) * PLACES)
        expected = expected + slow_block(
            [slow_place(frozen[row], q[row]) for row in rows], accepted, loss, decay, stress
        )
    assert found.loss_sum.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, q)[0], rtol=1e-6, atol=1e-9)


def by_hand(accepted: int) -> PlaceTerms:
    """One block of three places."""
    return PlaceTerms(
        hybrid=torch.tensor([[1.0, 2.0, 4.0]]),
        cross_entropy=torch.tensor([[0.5, 1.0, 3.0]]),
        counted=torch.tensor([[True, True, True]]),
        acceptance=torch.tensor([[0.5, 0.5, 1.0]]),
        accepted=torch.tensor([accepted]),
    )


@pytest.mark.parametrize(
    ("loss", "decay", "stress", "accepted", "value"),
    [
        ("lk_hybrid", 1.0, 1.0, 1, (1 + 2) / 2 + (0.5 + 1) / 2),
        ("lk_hybrid", 0.5, 3.0, 1, (1 + 1.5 * 2) / 2.5 + (0.5 + 1.5 * 1) / 2.5),
        ("first_failure", 1.0, 1.0, 0, 0.5),
        ("first_failure", 1.0, 1.0, 1, 0.75),
        ("first_failure", 1.0, 1.0, 3, 1.5),  # accepted whole: no failure
        ("first_failure", 0.5, 3.0, 1, 2 / 2.5),
        ("all_places", 1.0, 1.0, 0, 1.5),
        ("all_places", 0.5, 1.0, 0, (0.5 + 0.5 + 0.75) / 1.75),
        ("all_places", 0.5, 3.0, 1, (0.5 + 1.5 + 0.75) / 2.75),
        ("accepted_length", 1.0, 1.0, 1, 3 - (0.5 + 0.25 + 0.25)),
    ],
)
def test_a_block_by_hand(loss, decay: float, stress: float, accepted: int, value: float) -> None:
    assert LOSSES[loss](by_hand(accepted), chosen(loss, decay, stress)).item() == pytest.approx(value, rel=1e-6)


def test_every_choice_has_its_loss() -> None:
    assert set(LOSSES) == set(get_args(DrafterLoss))


@pytest.mark.parametrize("loss", get_args(DrafterLoss))
def test_places_behind_the_first_failure_count_in_two_losses_alone(loss: DrafterLoss) -> None:
    p, q = given(4)
    terms(p, q, chosen(loss)).loss_sum.backward()
    moved = (q.grad.abs().sum(-1) > 0).view(BLOCKS, PLACES)
    judged = (p.argmax(-1) != MASK).view(BLOCKS, PLACES)
    reached = torch.arange(PLACES) <= torch.tensor(ACCEPTED)[:, None]
    expected = {
        "lk_hybrid": reached,
        "first_failure": reached & judged,
        "all_places": judged,
        "accepted_length": torch.ones_like(reached),
    }
    assert torch.equal(moved, expected[loss])


def test_what_is_shown_is_the_same_for_every_loss_but_the_loss() -> None:
    p, q = given(5)
    shown = {}
    for loss, decay, stress in CHOICES:
        found = terms(p, q, chosen(loss, decay, stress))
        figures = {name: (pair[0].item(), pair[1].item()) for name, pair in drafter_pairs(found).items()}
        assert figures.pop("drafter loss") == (drafter_numerator(found).item(), BLOCKS)
        shown[loss, decay, stress] = figures
    assert all(figures == shown["lk_hybrid", 1.0, 1.0] for figures in shown.values())
    lost = terms(p, q, chosen("accepted_length")).loss_sum.item()
    (total, blocks) = shown["lk_hybrid", 1.0, 1.0]["expected length"]
    assert total / blocks == pytest.approx(1 + PLACES - lost / BLOCKS, rel=1e-12)


def test_the_expected_length_is_the_mean_of_sampled_lengths() -> None:
    """Blocks whose drafts stand by chance with the probabilities of their places."""
    chance = torch.tensor([0.9, 0.5, 0.8], dtype=torch.float64)
    stands = torch.rand(200_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) < chance
    sampled = stands.long().cumprod(1).sum(1).double().mean().item()
    assert expected_drafts(chance[None]).item() == pytest.approx(sampled, abs=0.01)


def operators(act: Callable[[], Tensor]) -> set[str]:
    """Names of the operators of a forward and its backward. (torch's cumprod does not read zeros where `NeverWaits`
    looks on.)"""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        act().sum().backward()
    return {event.key for event in profile.key_averages()}


def test_the_expected_length_reads_nothing_from_the_device() -> None:
    acceptance = torch.rand(3, 4, requires_grad=True)
    assert "aten::item" in operators(lambda: acceptance.cumprod(1))
    assert "aten::item" not in operators(lambda: expected_drafts(acceptance))


def test_equal_models_lose_no_draft_and_certain_ones_have_no_cross_entropy() -> None:
    p, _ = given(6)
    found = terms(p, p.clone(), chosen("accepted_length"))
    assert found.loss_sum.item() == pytest.approx(0, abs=1e-12)
    sure = 1e3 * torch.nn.functional.one_hot(torch.arange(BLOCKS * PLACES) % MASK, VOCABULARY).double()
    for loss in ("first_failure", "all_places"):
        assert terms(sure, sure.clone(), chosen(loss)).loss_sum.item() == pytest.approx(0, abs=1e-12)

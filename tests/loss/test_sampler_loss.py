"""Ranking and calibration against their definitions, by looking at every pair."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from nld_train.loss.sampler_loss import (
    BINS,
    CAP,
    area_under_roc,
    calibration_bands,
    judgement_loss,
    score_counts,
)


def test_the_loss_is_of_judged_positions_alone() -> None:
    torch.manual_seed(1)
    logits, labels, judged = torch.randn(3, 5), torch.rand(3, 5) < 0.5, torch.rand(3, 5) < 0.6
    logits[~judged] = torch.nan  # what is said of them is never looked at
    want = sum(
        -float(logsigmoid(z if y else -z))
        for z, y, j in zip(*map(torch.flatten, (logits, labels, judged)), strict=True)
        if j
    )
    assert float(judgement_loss(logits, labels, judged)) == pytest.approx(want, rel=1e-5)


def test_its_gradient_is_zero_elsewhere() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    judged = torch.tensor([[True, False, False, True], [False] * 4])
    judgement_loss(logits, torch.ones(2, 4, dtype=torch.bool), judged).backward()
    assert ((logits.grad != 0) == judged).all()


@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_auc_is_the_share_of_pairs(shift: float) -> None:
    torch.manual_seed(2)
    labels = torch.rand(300) < 0.3
    scores = torch.randn(300) + shift * labels
    pairs = [
        (1.0 if right > wrong else 0.5 if right == wrong else 0.0)
        for right in scores[labels].tolist()
        for wrong in scores[~labels].tolist()
    ]
    assert area_under_roc(score_counts(scores, labels)) == pytest.approx(sum(pairs) / len(pairs), abs=2e-3)


def test_equal_scores_are_half_right_and_one_kind_has_no_auc() -> None:
    labels = torch.tensor([True, True, False, False])
    assert area_under_roc(score_counts(torch.full((4,), 3.0), labels)) == 0.5
    assert area_under_roc(score_counts(torch.tensor([9.0, 8.0, 1.0, -50.0]), labels)) == 1.0
    assert math.isnan(area_under_roc(score_counts(torch.randn(4), torch.ones(4, dtype=torch.bool))))


def test_counts_add_up_and_hold_every_score() -> None:
    scores, labels = torch.tensor([-99.0, -CAP, 0.0, CAP, 99.0]), torch.tensor([True, False, True, False, True])
    counts = score_counts(scores, labels)
    assert counts.shape == (2, BINS) and counts.sum() == 5 and counts[1, -1] == 1 and counts[0, 0] == 1
    parts = score_counts(scores[:2], labels[:2]) + score_counts(scores[2:], labels[2:])
    assert parts.equal(counts)


def test_calibration_of_a_true_sampler_is_true() -> None:
    torch.manual_seed(3)
    said = torch.rand(200_000, dtype=torch.float64)
    labels = torch.rand(200_000) < said
    bands = calibration_bands(score_counts(said.logit(), labels))
    assert sum(count for count, _, _ in bands) == 200_000
    for number, (_, mean, right) in enumerate(bands):
        assert number / 10 <= mean <= (number + 1) / 10 and right == pytest.approx(mean, abs=0.02)
    empty = calibration_bands(score_counts(torch.tensor([0.1]), torch.tensor([True])))
    assert [count for count, _, _ in empty] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0] and math.isnan(empty[0][1])

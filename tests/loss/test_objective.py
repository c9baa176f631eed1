import pytest
import torch

from nld_train.loss.objective import loss_numerator, objective_value, reported_figures, sum_loss_terms
from nld_train.loss.terms import loss_terms
from nld_train.types import LossTerms, Row


def hand_made(ar: float, diffusion: float, count: float, masked: float = 0.0, maskable: float = 0.0) -> LossTerms:
    return LossTerms(*(torch.tensor(number) for number in (ar, diffusion, count, count, masked, maskable)))


def test_one_denominator_divides_both_terms():
    """Not the mean of the micro-batches' means (which would be 2.4), and no division by the masked count."""
    parts = [hand_made(6.0, 10.0, 2.0, 1.0, 2.0), hand_made(2.0, 4.0, 6.0, 5.0, 6.0)]
    assert objective_value(parts, 0.5, 1.0) == (6 + 2 + 0.5 * (10 + 4)) / 8
    assert loss_numerator(parts[0], 0.5, 1.0) == 11
    assert objective_value([sum_loss_terms(parts)], 0.5, 1.0) == objective_value(parts, 0.5, 1.0)


def test_each_term_has_its_weight():
    part = hand_made(6.0, 10.0, 2.0)
    assert loss_numerator(part, 0.5, 0.25) == 0.25 * 6 + 0.5 * 10
    assert objective_value([part], 0.5, 0.0) == 2.5
    assert reported_figures(part, 0.5, 0.0)["total loss"] == 2.5 and reported_figures(part, 0.5, 0.0)["AR loss"] == 3


def test_report_is_per_supervised_token_whatever_alpha_is():
    shown = reported_figures(hand_made(16.0, 24.0, 8.0, 3.0, 6.0), 0.5, 1.0)
    assert shown == {"AR loss": 2.0, "diffusion loss": 3.0, "total loss": 3.5, "mask ratio": 0.5}
    assert reported_figures(hand_made(16.0, 24.0, 8.0, 3.0, 6.0), 0.1, 1.0)["diffusion loss"] == 3.0


def test_a_document_mask_takes_ar_terms_away_and_no_weight_from_the_others(settings, batches):
    """Three documents in 24 tokens: 22 AR terms, and 24 supervised tokens in N."""
    documents = torch.arange(24) // 8
    row = Row(0, torch.arange(2, 27), torch.ones(25, dtype=torch.bool), documents)
    for average, count in (("token", 24.0), ("sequence", 1.0)):
        (batch,) = batches([row], settings(document_mask=True, average=average), 1)
        (apart,) = batches([row], settings(average=average), 1)
        ar, diffusion = torch.full((22,), 2.0), torch.ones(batch.diffusion_positions.shape)
        packed = loss_terms(ar, diffusion, batch)
        whole = loss_terms(torch.full((24,), 2.0), diffusion, apart)
        assert packed.denominator == whole.denominator == count
        assert packed.diffusion_sum == whole.diffusion_sum
        shown = reported_figures(packed, 0.3, 1.0)
        assert shown["AR loss"] == pytest.approx(2.0) and packed.ar_sum / whole.ar_sum == pytest.approx(22 / 24)
        assert shown["total loss"] == pytest.approx(((2 * 22 / 24) + 0.3 * shown["diffusion loss"]).item())


def test_nothing_supervised_is_zero_and_not_nan():
    assert objective_value([hand_made(0.0, 0.0, 0.0)], 0.3, 1.0) == 0
    assert all(value == 0 for value in reported_figures(hand_made(0.0, 0.0, 0.0), 0.3, 1.0).values())


@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("law", ["uniform", "stratified", "per_block", "complementary"])
def test_gradients_do_not_depend_on_how_the_global_batch_is_split(net, rows, settings, batches, law, average):
    """1 x 8, 2 x 4, 4 x 2, 8 x 1 micro-batches, accumulated as a run does: numerators backward, N known at the end."""
    config = settings(noise_law=law, average=average)
    found = []
    for micro_batch in (8, 4, 2, 1):
        model = net(torch.float64)
        parts = [model.terms(batch) for batch in batches(rows, config, micro_batch)]
        for count in ("masked", "maskable"):  # unequal masks and unequal supervision
            assert len(parts) == 1 or len({getattr(part, count).item() for part in parts}) > 1
        for part in parts:
            loss_numerator(part, config.alpha, 1.0).backward()
        count = sum_loss_terms(parts).denominator
        found.append(
            (objective_value(parts, config.alpha, 1.0).detach(), [gradient / count for gradient in model.gradients()])
        )
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-12, atol=0)
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_gradient_of_the_objective_is_the_accumulated_one(net, rows, settings, batches):
    model, accumulated = net(torch.float64), net(torch.float64)
    objective_value([model.terms(batch) for batch in batches(rows, settings(), 2)], 0.3, 1.0).backward()
    parts = [accumulated.terms(batch) for batch in batches(rows, settings(), 8)]
    (loss_numerator(parts[0], 0.3, 1.0) / parts[0].denominator).backward()
    for one, other in zip(model.gradients(), accumulated.gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_ar_gradient_does_not_depend_on_the_mask_draw(net, rows, settings, batches):
    found = []
    for seed in (1, 2):
        model = net(torch.float64)
        (batch,) = batches(rows, settings(noise_seed=seed), 8)
        part = model.terms(batch)
        (part.ar_sum / part.denominator).backward()
        found.append((batch.diffusion_positions, part.ar_sum.detach(), model.gradients()))
    assert found[0][0].tolist() != found[1][0].tolist()
    assert torch.equal(found[0][1], found[1][1])
    for one, other in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_ar_term_of_a_joint_stage_is_the_ar_loss(net, rows, settings, batches):
    """The step from stage 1 to stage 2: same weights, same rows, same AR loss and gradient."""
    found = []
    for alpha in (0.0, 0.3):
        model = net(torch.float64)
        (batch,) = batches(rows, settings(alpha=alpha), 8)
        part = model.terms(batch)
        part.ar_sum.backward()
        found.append((reported_figures(part, alpha, 1.0)["AR loss"].detach(), model.gradients()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15)


def test_alpha_scales_the_diffusion_gradient_alone(net, rows, settings, batches):
    def gradients(pick) -> list[torch.Tensor]:
        model = net(torch.float64)
        (batch,) = batches(rows, settings(), 8)
        pick(model.terms(batch)).backward()
        return model.gradients()

    ar, diffusion = gradients(lambda part: part.ar_sum), gradients(lambda part: part.diffusion_sum)
    for alpha in (0.3, 1.0):
        both = gradients(lambda part, alpha=alpha: loss_numerator(part, alpha, 1.0))
        for whole, one, other in zip(both, ar, diffusion, strict=True):
            torch.testing.assert_close(whole, one + alpha * other, rtol=1e-9, atol=1e-12)


def test_alpha_zero_trains_plain_ar_bit_for_bit(net, rows, settings, batches):
    """Three steps of float32 SGD against a loop that knows no diffusion: the mean over all positions of all rows."""
    ours, plain = net(torch.float32), net(torch.float32)
    config = settings(alpha=0.0)
    everything = [type(row)(row.index, row.tokens, torch.ones_like(row.supervised)) for row in rows]
    tokens = torch.stack([row.tokens for row in everything])
    for _ in range(3):
        objective_value([ours.terms(batch) for batch in batches(everything, config, 8)], config.alpha, 1.0).backward()
        logits = plain.logits(tokens[:, :-1], dual=False).flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
        (losses.sum() / losses.numel()).backward()
        for model in (ours, plain):
            torch.optim.SGD(model.parameters(), lr=0.5).step()
            model.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), plain.parameters(), strict=True))
    assert not torch.equal(ours.head.weight, net(torch.float32).head.weight)

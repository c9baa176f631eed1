"""The losses of `labels` against the definition, against the project's own objective, and that nothing copies."""

import math

import pytest
import torch

from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_between
from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.objective_nemotron_labs_diffusion import dual_stream, dual_stream_visibility

MASK, BLOCK, ALPHA = 3, 8, 0.3


def labelled(ids):
    """Labels that leave the first two tokens of every row out."""
    return torch.cat([torch.full_like(ids[:, :2], -100), ids[:, 2:]], 1)


def shifted_loss(logits, ids, first: int):
    """Mean cross-entropy of positions first - 1 .. L - 2 with the next token."""
    log_probs = logits.log_softmax(-1)[:, first - 1 : -1]
    return -log_probs.gather(-1, ids[:, first:, None]).mean()


@pytest.mark.parametrize("paradigm", ["bidirectional", "autoregressive"])
def test_labels_give_the_causal_loss_whatever_the_paradigm(tiny_model, random_ids, paradigm):
    model, ids = tiny_model(dlm_paradigm=paradigm), random_ids(2, 12)
    seen = model(ids, labels=labelled(ids))
    causal = model(ids, use_causal_mask=True)
    assert torch.equal(seen.logits, causal.logits)
    assert seen.loss.item() == pytest.approx(shifted_loss(causal.logits, ids, 2).item(), rel=1e-6)


def test_training_with_labels_on_a_bidirectional_config_trains_no_copier(tiny_model, random_ids):
    """The causal loss of the trained model falls with the loss that training shows."""
    model, ids = tiny_model(dtype=torch.float32), random_ids(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    shown = []
    for _ in range(12):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown.append(loss.item())
    with torch.no_grad():
        causal = shifted_loss(model(ids, use_causal_mask=True).logits, ids, 1).item()
    assert causal < shown[-1] < 0.7 * shown[0]


def test_labels_for_an_input_seen_both_ways_count_masked_places_alone(model, random_ids):
    ids = random_ids(2, 12)
    noisy = ids.clone()
    noisy[:, ::3] = MASK
    seen = model(noisy, labels=labelled(ids), use_causal_mask=False)
    counted = (noisy == MASK) & (labelled(ids) != -100)
    expected = torch.nn.functional.cross_entropy(seen.logits[counted].float(), ids[counted])
    assert seen.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(InputError, match="no masked token with a label; allowed: inputs with the mask 3"):
        model(ids, labels=ids, use_causal_mask=False)


def test_a_whole_batch_divides_where_transformers_says_how_many_tokens_it_has(model, random_ids):
    ids = random_ids(2, 12)
    own, whole = (model(ids, labels=ids, num_items_in_batch=count).loss.item() for count in (None, 100))
    assert whole == pytest.approx(own * 22 / 100, rel=1e-6)


def test_the_visibility_is_that_of_training(random_ids):
    places = torch.arange(40)[None]
    ours = dual_stream_visibility(places, torch.ones_like(places, dtype=torch.bool), BLOCK)[0, 0]
    every = torch.arange(80)
    assert torch.equal(ours, visible_between(RowLayout(40, BLOCK, dual=True), every, every))


def test_padding_is_seen_by_nobody_and_moves_no_block(random_ids):
    """A left-padded row is the row alone, shifted."""
    ids = random_ids(1, 20)
    padded = torch.nn.functional.pad(ids, (5, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    whole = dual_stream(padded, padded, mask, MASK, BLOCK)
    alone = dual_stream_visibility(torch.arange(20)[None], torch.ones(1, 20, dtype=torch.bool), BLOCK)
    real = torch.cat([mask, mask], 1)[0].bool()
    assert torch.equal(whole.visible[0, 0][real][:, real], alone[0, 0])
    assert not whole.visible[0, 0][real][:, ~real].any()
    assert whole.weights[0, :5].sum() == 0 and torch.equal(whole.ids[0, 25:], padded[0])


def test_tokens_are_masked_with_the_probability_that_weighs_them():
    """E[weight] = 1 for a supervised token, and t is spread evenly over rows."""
    torch.manual_seed(0)
    ids = torch.full((20_000, 4), 9)
    labels = ids.clone()
    labels[:, 0] = -100
    batch = dual_stream(ids, labels, None, MASK, BLOCK)
    assert (batch.weights[:, 0] == 0).all()
    assert torch.equal(batch.ids[:, :4] == MASK, batch.weights > 0)
    assert (batch.weights[:, 1:] > 0).double().mean().item() == pytest.approx(0.5005, abs=0.01)
    assert batch.weights[:, 1:].double().mean().item() == pytest.approx(1, abs=0.05)


def test_the_joint_loss_is_both_terms_over_one_count(tiny_model, random_ids):
    """Against [noisy | clean] decoded as inference does it: a noisy block over the cached clean blocks before it."""
    model, ids = tiny_model(dlm_loss_weight=ALPHA, block_size=BLOCK), random_ids(2, 24)
    labels = labelled(ids)
    torch.manual_seed(5)
    batch = dual_stream(ids, labels, None, MASK, BLOCK)
    torch.manual_seed(5)
    seen = model(ids, labels=labels)
    with torch.no_grad():
        clean = model(ids, use_causal_mask=True).logits
        noisy = []
        for first in range(0, 24, BLOCK):
            cache = model(ids[:, :first], use_cache=True, use_causal_mask=True).past_key_values
            block = batch.ids[:, first : first + BLOCK]
            noisy.append(model(block, past_key_values=cache, use_cache=False, use_causal_mask=False).logits)
    each = torch.nn.functional.cross_entropy(torch.cat(noisy, 1).transpose(1, 2), ids, reduction="none")
    count = (labels[:, 1:] != -100).sum()
    expected = shifted_loss(clean, ids, 2) + ALPHA * (each * batch.weights).sum() / count
    assert (batch.weights > 0).sum() > 5
    assert seen.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(seen.logits, clean)


def test_the_joint_loss_trains_both_modes(tiny_model, random_ids):
    model, ids = tiny_model(dtype=torch.float32, dlm_loss_weight=ALPHA, block_size=BLOCK), random_ids(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    noisy = ids.clone()
    noisy[:, 1::2] = MASK

    def losses() -> tuple[float, float]:
        with torch.no_grad():
            causal = shifted_loss(model(ids, use_causal_mask=True).logits, ids, 1).item()
            denoised = model(noisy[:, :BLOCK], labels=ids[:, :BLOCK], use_causal_mask=False).loss.item()
        return causal, denoised

    torch.manual_seed(0)
    before = losses()
    for _ in range(25):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(after < 0.8 * earlier for after, earlier in zip(losses(), before, strict=True))


def test_what_the_joint_loss_cannot_lay_out_is_refused(tiny_model, random_ids):
    model, ids = tiny_model(dlm_loss_weight=ALPHA), random_ids(1, 8)
    embedded = model.get_input_embeddings()(ids)
    with pytest.raises(InputError, match="the joint loss with inputs_embeds"):
        model(inputs_embeds=embedded, labels=ids)


def test_no_label_is_no_loss(model, random_ids):
    loss = model(random_ids(1, 8), labels=torch.full((1, 8), -100)).loss
    assert loss.item() == 0 and not math.isnan(loss.item())

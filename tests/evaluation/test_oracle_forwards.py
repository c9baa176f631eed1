"""Many states in one forward are what they are alone."""

import pytest
import torch

from nld_train.evaluation import oracle_forwards
from nld_train.evaluation.oracle_forwards import OracleBlock, StateForwards, group_logits, predict_tokens
from nld_train.evaluation.oracle_walks import MASKED
from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from tests.decode.conftest import MASK


def alone(model, text, state):
    """Logits [B, V] of one state behind a text."""
    past = KVCache(1)
    extend_cache(model, torch.tensor([text]), past)
    return noisy_logits(model, torch.tensor([state]), past, MASK)[0]


@torch.no_grad()
def test_groups_of_one_forward_are_noisy_blocks_of_their_own(small, ragged) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts, length = ragged[:6], 5
    forwards = StateForwards(small, prompts)
    forwards.append_tokens(torch.randint(0, 6, (6, 10), generator=generator))
    more = torch.randint(0, 6, (6, 3), generator=generator)
    forwards.append_tokens(more)
    past = torch.stack([torch.randint(1, n + 1, (4,), generator=generator) for n in forwards.cache.lengths])
    ids = torch.randint(0, 6, (6, 4, length), generator=generator)
    before = forwards.cache.lengths[:]
    logits = group_logits(small, forwards.cache, ids, past)
    assert forwards.cache.lengths == before
    for row, prompt in enumerate(prompts):
        text = list(prompt) + texts_of(forwards, row, prompt)
        for group in range(4):
            expected = alone(small, text[: past[row, group]], ids[row, group].tolist())
            torch.testing.assert_close(logits[row, group], expected, atol=1e-12, rtol=1e-12)


def texts_of(forwards, row, prompt):
    """What was appended to a row, drawn again."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 6, (6, 10), generator=generator)
    return [*first[row].tolist(), *torch.randint(0, 6, (6, 3), generator=generator)[row].tolist()]


@torch.no_grad()
@pytest.mark.parametrize("tokens", [10, 4096])
def test_predictions_come_in_order_however_many_forwards_they_take(small, ragged, monkeypatch, tokens) -> None:
    monkeypatch.setattr(oracle_forwards, "TOKENS", tokens)
    prompts = ragged[:3]
    forwards = StateForwards(small, prompts)
    asked = [
        (OracleBlock(row, len(prompts[row]) - back), (token, MASKED, MASKED))
        for row, back, token in [(2, 0, 1), (0, 0, 5), (2, 1, MASKED), (2, 0, 0), (0, 0, MASKED)]
    ]
    forwards.keep_rows([2, 0])  # nobody asks for the second one
    said = forwards.predict_states(asked)
    assert forwards.rows == [2, 0] and forwards.used == 5 and forwards.given >= 5
    for (block, state), prediction in zip(asked, said, strict=True):
        logits = alone(small, prompts[block.row][: block.past], [MASK if token == MASKED else token for token in state])
        tokens, confidence = predict_tokens(logits)
        assert prediction.tokens == tokens.tolist() and MASK not in prediction.tokens
        torch.testing.assert_close(torch.tensor(prediction.confidence, dtype=torch.float64), confidence)

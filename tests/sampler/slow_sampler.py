"""Features and trajectories of the sampler written down a second time: one number, one state at a time."""

import math
from dataclasses import dataclass

import torch

from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from tests.decode.conftest import MASK


def slow_statistics(logits: list[float]) -> tuple[list[int], list[float]]:
    """The three most probable tokens, and the 12 statistics, of one distribution."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    highest = logits[order[0]]
    weights = [math.exp(z - highest) for z in logits]
    p = [weight / sum(weights) for weight in weights]
    first, second, third = order[:3]
    entropy = -sum(q * math.log(q) for q in p if q > 0)
    rest = sum(weight for token, weight in enumerate(weights) if token != first)
    odds = -math.log(rest) if rest > 0 else math.inf
    spread = sum(q * (-math.log(q) - entropy) ** 2 for q in p if q > 0)
    return order[:3], [
        p[first],
        p[second],
        p[third],
        p[first] - p[second],
        p[first] + p[second] + p[third],
        entropy,
        entropy / math.log(len(logits)),
        math.log(p[first]),
        min(highest - logits[second], 16.0),
        max(-16.0, min(16.0, odds)),
        sum(q * q for q in p),
        spread,
    ]


@dataclass
class SlowSteps:
    """A block's way: [(the three tokens, the statistics, is it final) of every place, None of a committed one]."""

    steps: list
    final: list[int]


def slow_way(model, text: list[int], length: int, truth: list[int] | None, mask: int = MASK) -> SlowSteps:
    """A seed and masks behind a text. truth: the policy is hybrid; a block that it does not fill has less of it."""
    past = KVCache(1)
    with torch.no_grad():
        behind = extend_cache(model, torch.tensor([text]), past)[0, -1].tolist()
    seed = behind.index(max(behind)) if truth is None else truth[0]
    ids, steps = [seed] + [mask] * (length - 1), []
    masked = [False] + [True] * (length - 1)
    while any(masked):
        with torch.no_grad():
            logits = noisy_logits(model, torch.tensor([ids]), past, mask)[0].tolist()
        said = [slow_statistics(row) if masked[place] else None for place, row in enumerate(logits)]
        steps.append(said)
        best = max((place for place in range(length) if masked[place]), key=lambda place: (said[place][1][0], -place))
        chosen = [best]
        if truth is not None and len(steps) == 1:
            agreed = [place for place in range(1, min(length, len(truth))) if said[place][0][0] == truth[place]]
            chosen = agreed or chosen
        for place in chosen:
            ids[place], masked[place] = said[place][0][0], False
    labelled = [
        [None if seen is None else (*seen, seen[0][0] == ids[place]) for place, seen in enumerate(step)]
        for step in steps
    ]
    return SlowSteps(labelled, ids)

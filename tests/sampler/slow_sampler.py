"""Features and trajectories of the sampler written down a second time: one number, one state at a time."""

import math


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

"""Lengths of a run that are given in tokens, as papers give them, and the iterations that follow from them.

An iteration trains global_batch x sequence_length tokens. A length is given either in tokens or in iterations. Where it
is given in tokens, another batch or row length keeps the tokens and changes the iterations.
"""

from dataclasses import replace

from nld_train.errors import UserError, require
from nld_train.setting_ranges import DERIVED

# Setting in tokens -> setting in iterations.
ITERATIONS_OF = {
    "train.tokens": "train.iterations",
    "optimizer.warmup_tokens": "optimizer.warmup_iterations",
    "optimizer.decay_tokens": "optimizer.decay_iterations",
}


def derive_iterations[Section](section: str, settings: Section, step_tokens: int) -> Section:
    """A copy of a section of settings with the iterations that its tokens make.

    section: train or optimizer. step_tokens: tokens of one iteration. Recipes write 300e9, which Python reads as a
    float: in the copy every number of tokens is an int.

    Raises: UserError where a length is given neither in tokens nor in iterations, or in both and they disagree.
    """
    changes: dict[str, int] = {}
    for in_tokens, in_iterations in ITERATIONS_OF.items():
        if in_tokens.startswith(f"{section}."):
            tokens_field, iterations_field = (key.partition(".")[2] for key in (in_tokens, in_iterations))
            tokens, given = getattr(settings, tokens_field), getattr(settings, iterations_field)
            if tokens is None:
                _check_given(in_tokens, given)
            else:
                changes[tokens_field] = _whole_tokens(in_tokens, tokens)
                changes[iterations_field] = _nearest_iterations(in_tokens, changes[tokens_field], given, step_tokens)
    return replace(settings, **changes)  # type: ignore[type-var]


def _check_given(in_tokens: str, iterations: int) -> None:
    name = ITERATIONS_OF[in_tokens]
    require(iterations != DERIVED, f"neither {in_tokens} nor {name}", "one of the two", f"give {in_tokens} or {name}")
    require(iterations >= 0, f"{name}={iterations}", "0 or more", f"correct {name}")


def _whole_tokens(name: str, tokens: float) -> int:
    require(
        isinstance(tokens, int | float) and not isinstance(tokens, bool) and tokens > 0 and float(tokens).is_integer(),
        f"{name}={tokens!r}",
        "whole numbers above 0, such as 300e9",
        f"correct {name}",
    )
    return int(tokens)


def _nearest_iterations(in_tokens: str, tokens: int, given: int, step_tokens: int) -> int:
    """Iterations of a number of tokens, rounded: 1e12 tokens of 512 rows x 4,096 make 476,837."""
    in_iterations = ITERATIONS_OF[in_tokens]
    nearest = (2 * tokens + step_tokens) // (2 * step_tokens)  # of integers, so that no digit is lost
    if nearest == 0:
        least = f"at least half the tokens of one iteration, which has {step_tokens}"
        raise UserError(f"{in_tokens}={tokens}", least, f"raise {in_tokens}, or give {in_iterations}")
    if given not in (DERIVED, nearest):
        both = f"{in_tokens}={tokens} with {in_iterations}={given}"
        raise UserError(both, f"one of the two: these tokens make {nearest} iterations", "take one of them away")
    return nearest

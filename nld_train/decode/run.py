"""What the modes share: checking a request, its rows and its random numbers, and timing it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nld_train.config import DecodeConfig
from nld_train.decode.result import Decoded, decoded
from nld_train.errors import UserError
from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation
from nld_train.hf.rows_nemotron_labs_diffusion import Limits, Rows, Streamer, check_request, thinking_budget
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler
from nld_train.noise.seeding import uniforms

Loop = Callable[[Rows, Sampler], None]


def run(
    model: Any, prompts: Sequence[Sequence[int]], settings: DecodeConfig, streamer: Streamer | None, loop: Loop
) -> list[Decoded]:
    """Decode all prompts as one batch with `loop`; each comes out as if it were alone with its place in the list.

    Raises: UserError for a request that the model cannot serve.
    """
    rows = open_rows(model, prompts, settings, streamer)
    sampler = Sampler(settings.temperature, settings.top_p, generators(settings.seed, len(prompts)), len(prompts))
    start = time.perf_counter()
    with evaluation(model):
        loop(rows, sampler)
    seconds = time.perf_counter() - start
    return [decoded(row, seconds) for row in rows.rows]


def open_rows(model: Any, prompts: Sequence[Sequence[int]], settings: DecodeConfig, streamer: Streamer | None) -> Rows:
    """The rows of a request. Raises: UserError."""
    eos = model.config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    with user_errors():
        thinking = thinking_budget(settings.max_thinking_tokens, settings.end_think_token_id)
        limits = Limits(settings.max_new_tokens, eos, thinking)
        check_request(model.config, prompts, limits)
    return Rows(prompts, limits, streamer)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the travelling files' error into the project's own."""
    try:
        yield
    except InputError as error:
        raise UserError(error.got, error.allowed, error.do) from error


def generators(seed: int, rows: int) -> list[torch.Generator]:
    """The generator of every prompt, by its place in the list: the same in a batch of any size."""
    return [torch.Generator().manual_seed(int(uniforms(seed, row, "decode", 1) * 2**53)) for row in range(rows)]

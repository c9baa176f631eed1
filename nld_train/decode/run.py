"""What all decoding modes share: the check of a request, its rows and random numbers, and the time it takes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nld_train.decode.result import Decoded, decoded_result
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError, require
from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.decoding_nemotron_labs_diffusion import evaluation_mode
from nld_train.hf.rows_nemotron_labs_diffusion import (
    Complete,
    GenerationLimits,
    Generations,
    Streamer,
    check_generation_request,
    end_token_ids,
    thinking_budget,
)
from nld_train.hf.sampling_nemotron_labs_diffusion import Sampler
from nld_train.noise.seeding import keyed_uniforms

DecodeLoop = Callable[[Generations, Sampler], None]  # decodes all rows to their ends, in place


@dataclass(frozen=True)
class ImagePrompts:
    """Prompts that hold images."""

    ids: Sequence[Sequence[int]]  # with the tokens of their images
    images: Mapping[str, Tensor]  # pixel_values [N, 3, H, W] and image_sizes [N, 2], prompt by prompt


Prompts = Sequence[Sequence[int]] | ImagePrompts


def generate_batch(
    model: Any,
    prompts: Prompts,
    settings: DecodeConfig,
    streamer: Streamer | None,
    complete: Complete | None,
    loop: DecodeLoop,
) -> list[Decoded]:
    """Decode prompts, lists of token ids, as one batch with `loop`. Returns: an answer to each prompt, in their order.

    The prefill alone is shown images. An answer does not depend on the other prompts, but at a temperature on its own
    number in the list.
    Raises: UserError for a request that the model cannot serve.
    """
    limits = generation_limits(model.config, settings, complete)
    ids, images = (prompts.ids, prompts.images) if isinstance(prompts, ImagePrompts) else (prompts, {})
    with user_errors():
        check_generation_request(model.config, ids, limits)
        rows = Generations(ids, limits, streamer, model.prefill_images(ids, images))
        return decode_rows(model, rows, settings, loop)


def decode_rows(model: Any, rows: Generations, settings: DecodeConfig, loop: DecodeLoop) -> list[Decoded]:
    """Decode rows to their ends with `loop`, with the settings' random numbers. Returns: their answers."""
    count = len(rows.rows)
    sampler = Sampler(settings.temperature, settings.top_p, prompt_generators(settings.seed, count), count)
    start = time.perf_counter()
    with evaluation_mode(model):
        loop(rows, sampler)
    seconds = time.perf_counter() - start
    return [decoded_result(row, seconds) for row in rows.rows]


def generation_limits(config: Any, settings: DecodeConfig, complete: Complete | None) -> GenerationLimits:
    """Where the rows of a request end. Raises: UserError for ends that the model does not know."""
    ends = text_ends(config, settings)
    with user_errors():
        thinking = thinking_budget(settings.max_thinking_tokens, settings.end_think_token_id)
    return GenerationLimits(settings.max_new_tokens, ends, thinking, complete)


def text_ends(config: Any, settings: DecodeConfig) -> tuple[int, ...]:
    """The ids that end a text: those of the settings, or the model's own. Raises: UserError for an id that no token of
    the model has, and which would never end one."""
    known = config.eos_token_id
    is_ids = known is None or isinstance(known, int | list | tuple)
    require(is_ids, f"eos_token_id={known!r} in config.json", "an id, or a list of them", "correct config.json")
    chosen = known if settings.eos_token_id is None else settings.eos_token_id
    named = {"eos_token_id": end_token_ids(chosen), "end_think_token_id": end_token_ids(settings.end_think_token_id)}
    for name, ids in named.items():
        for token_id in ids:
            require(
                isinstance(token_id, int) and 0 <= token_id < config.vocab_size,
                f"{name}={token_id}",
                f"ids from 0 on below the model's vocab_size={config.vocab_size}",
                f"correct {name}, or config.json",
            )
    return named["eos_token_id"]


@contextmanager
def user_errors() -> Iterator[None]:
    """Inside this context, the error of the exported code becomes the project's own. Raises: UserError."""
    try:
        yield
    except InputError as error:
        raise UserError(error.got, error.allowed, error.do) from error


def prompt_generators(seed: int, rows: int) -> list[torch.Generator]:
    """A generator for each row, seeded by the row's number: the same one in a batch of any size."""
    return [torch.Generator().manual_seed(int(keyed_uniforms(seed, row, "decode", 1) * 2**53)) for row in range(rows)]

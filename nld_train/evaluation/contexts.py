"""Prompts as token ids: what stands before each answer that is evaluated.

Of a prompt with several turns, the answers between them are greedy AR's, so that every mode is given the same text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from nld_train.data.chat_encoder import load_chat_encoder
from nld_train.data.chat_template import Message
from nld_train.decode.ar import generate_ar
from nld_train.decode.image_prompt import image_chat_prompts, read_image_file
from nld_train.decode.load import token_text
from nld_train.decode.run import ImagePrompts, Prompts
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import require
from nld_train.evaluation.evaluated_model import EvaluatedModel
from nld_train.evaluation.prompt_file import EvalPrompt


@dataclass(frozen=True)
class EvalContext:
    """What stands before one answer."""

    key: str  # "PROMPT/TURN", turns counted from 1
    category: str
    ids: tuple[int, ...]
    reference: str | None  # the right answer
    images: Mapping[str, Tensor] = field(default_factory=dict)  # pixel_values [N, 3, H, W], image_sizes [N, 2]; or none
    question: str = ""  # of a context with images: the turn's text
    files: tuple[str, ...] = ()  # of its images


@dataclass(frozen=True)
class ContextSettings:
    """How prompts become contexts."""

    decode: DecodeConfig  # of the answers; its end-of-text ids are kept where they are set
    chat: bool  # prompts are turns of a user in the model's chat template
    thinking: bool = False
    processor: Any = None  # transformers' own, of a model with a vision tower; None: prompts may not name images
    blank_images: bool = False  # every image becomes a grey one of its size: what the model knows without looking


BLANK = (128, 128, 128)


def build_contexts(
    evaluated: EvaluatedModel, prompts: Sequence[EvalPrompt], settings: ContextSettings
) -> tuple[list[EvalContext], DecodeConfig]:
    """The contexts of all prompts, and the settings with which their answers end.

    Raises: UserError for several turns without a chat template, for images that cannot be shown or read, and for what
    does not fit into the model's context.
    """
    encoder = load_chat_encoder(evaluated.tokenizer, settings.thinking) if settings.chat else None
    decode = settings.decode
    if encoder is not None and decode.eos_token_id is None:
        decode = replace(decode, eos_token_id=(encoder.end_mark(),))
    contexts = []
    for prompt in prompts:
        several = len(prompt.turns) > 1 and encoder is None
        require(not several, f"prompt {prompt.name} has {len(prompt.turns)} turns", "one without --chat", "add --chat")
        if prompt.images:
            contexts.append(image_context(evaluated, prompt, settings, decode))
            continue
        said: list[Message] = []
        for turn, text in enumerate(prompt.turns, start=1):
            said.append(Message("user", text))
            ids = (evaluated.tokenizer.encode(text) if encoder is None else encoder.prompt(said)).tolist()
            key = f"{prompt.name}/{turn}"
            check_context_length(key, ids, decode.max_new_tokens, evaluated.model.config.max_position_embeddings)
            last = turn == len(prompt.turns)
            contexts.append(EvalContext(key, prompt.category, tuple(ids), prompt.reference if last else None))
            if not last:
                said.append(Message("assistant", greedy_text(evaluated, ids, decode)))
    return contexts, decode


def image_context(
    evaluated: EvaluatedModel, prompt: EvalPrompt, settings: ContextSettings, decode: DecodeConfig
) -> EvalContext:
    """The context of a prompt of one turn, which begins with images. Raises: UserError."""
    key = f"{prompt.name}/1"
    require(
        settings.processor is not None and settings.chat and len(prompt.turns) == 1,
        f"prompt {prompt.name} with {len(prompt.images)} images and {len(prompt.turns)} turns",
        "images in one turn, with --chat, for an export of a model with a vision tower, in `nld eval decode`",
        "leave its images out, or the prompt",
    )
    images = [read_image_file(path) for path in prompt.images]
    if settings.blank_images:
        images = [Image.new("RGB", image.size, BLANK) for image in images]
    made = image_chat_prompts(settings.processor, evaluated.tokenizer, images, settings.thinking)(prompt.turns[0])
    (ids,) = made.ids
    check_context_length(key, ids, decode.max_new_tokens, evaluated.model.config.max_position_embeddings)
    files = tuple(map(str, prompt.images))
    return EvalContext(key, prompt.category, tuple(ids), prompt.reference, made.images, prompt.turns[0], files)


def context_prompts(contexts: Sequence[EvalContext]) -> Prompts:
    """What is decoded for these contexts as one batch; images are padded to the largest."""
    ids = [context.ids for context in contexts]
    shown = [context.images for context in contexts if context.images]
    if not shown:
        return ids
    pixels = [each["pixel_values"] for each in shown]
    height, width = (max(one.shape[side] for one in pixels) for side in (2, 3))
    padded = [pad(one, (0, width - one.shape[3], 0, height - one.shape[2])) for one in pixels]
    sizes = torch.cat([each["image_sizes"] for each in shown])
    return ImagePrompts(ids, {"pixel_values": torch.cat(padded), "image_sizes": sizes})


def check_context_length(key: str, ids: Sequence[int], new: int, positions: int) -> None:
    """Raises: UserError for an empty context, and for one that leaves no room for `new` tokens."""
    require(len(ids) > 0, f"prompt {key} has no tokens", "one or more", "correct it, or take it away")
    room = f"{positions} positions together"
    got = f"prompt {key} of {len(ids)} tokens with max_new_tokens={new}"
    require(len(ids) + new <= positions, got, room, "shorten the prompt or lower --max-new-tokens")


def greedy_text(evaluated: EvaluatedModel, ids: Sequence[int], decode: DecodeConfig) -> str:
    """Greedy AR's answer, without the token that ends it."""
    (answer,) = generate_ar(evaluated.model, [ids], replace(decode, temperature=0.0))
    ends = decode.eos_token_id or ()
    return token_text(evaluated.tokenizer)([token for token in answer.ids if token not in ends])

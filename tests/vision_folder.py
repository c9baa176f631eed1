"""Tiny random models with a vision tower: Ministral-3 as stock transformers makes and saves it, and images to show it.

The tower has heads of 8 numbers, patches of 4 pixels and cells of 8; an image's longest edge has 48 pixels at most.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
CELL, LONGEST_EDGE = 8, 48  # pixels
IMAGE, BREAK, END = 20, 21, 22  # ids
# What a tokenizer of this project reserves, and what Ministral-3 calls its tokens.
NAMES = {"<SPECIAL_20>": "[IMG]", "<SPECIAL_21>": "[IMG_BREAK]", "<SPECIAL_22>": "[IMG_END]"}


def vision_settings(activation: str) -> dict[str, Any]:
    """A tower in the words of PixtralVisionConfig."""
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": LONGEST_EDGE,
        "patch_size": CELL // 2,
        "hidden_act": activation,
    }


def stock_ministral(activation: str = "silu", tied: bool = False, hidden: int = 64) -> Any:
    """A Mistral3ForConditionalGeneration with weights wide enough that every one of them shows in logits."""
    from transformers import Ministral3Config, Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

    text = Ministral3Config(
        vocab_size=400,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters=ROPE,
        tie_word_embeddings=tied,
    )
    vision = PixtralVisionConfig(**vision_settings(activation))
    torch.manual_seed(0)
    config = Mistral3Config(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, image_token_index=IMAGE
    )  # fmt: skip
    model = Mistral3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name or "ln_pre" in name else 0.0))
    return model


def save_ministral(model: Any, tokenizer: Path, folder: Path) -> Path:
    """A folder as transformers saves it, with a tokenizer that has Ministral-3's names of image tokens."""
    image_tokenizer(tokenizer, folder)
    model.save_pretrained(folder)
    return folder


def image_tokenizer(tokenizer: Path, folder: Path) -> Path:
    """A copy of a tokenizer of this project with Ministral-3's names of image tokens."""
    shutil.copytree(tokenizer, folder)
    text = (folder / "tokenizer.json").read_text()
    for reserved, name in NAMES.items():
        assert f'"{reserved}"' in text
        text = text.replace(f'"{reserved}"', json.dumps(name))
    (folder / "tokenizer.json").write_text(text)
    return folder


def random_images(sizes: Sequence[tuple[int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Images of so many cells [(rows, columns)] as the processor hands them over: pixel_values padded to the largest,
    and image_sizes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (CELL * max(side) for side in zip(*sizes, strict=True))
    pixels = torch.zeros(len(sizes), 3, height, width)
    for number, (rows, columns) in enumerate(sizes):
        shape = (3, rows * CELL, columns * CELL)
        pixels[number, :, : shape[1], : shape[2]] = torch.randn(shape, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes) * CELL}


def image_tokens(rows: int, columns: int) -> list[int]:
    """The tokens of an image of so many cells."""
    return ([IMAGE] * columns + [BREAK]) * (rows - 1) + [IMAGE] * columns + [END]


def write_picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A file with random pixels."""
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(colours).save(path)
    return path

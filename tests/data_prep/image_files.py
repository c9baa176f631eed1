"""Images drawn for tests, and a tokenizer with tokens for them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = "<SPECIAL_12>,<SPECIAL_13>,<SPECIAL_14>"  # of the trained tokenizer: for cells, breaks and ends
IMG, BREAK, END = 12, 13, 14


def draw_image(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """An image of random blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode_image(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def save_image(path: Path, width: int, height: int, seed: int = 0) -> bytes:
    """A PNG file; its bytes."""
    data = encode_image(draw_image(width, height, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def asked(*parts: object, answer: str = "a thing") -> dict:
    """A conversation whose question has these parts: texts, and images as OpenAI writes them."""
    content = [
        part if isinstance(part, dict) else {"type": "text", "text": part} if isinstance(part, str) else None
        for part in parts
    ]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def at(url: str) -> dict:
    """An image part with this URL or path."""
    return {"type": "image_url", "image_url": {"url": url}}


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

"""Prompts with images: the files, and what transformers' processor of an export makes of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from nld_train.data.image_pixels import BROKEN, FORMATS, decode_image
from nld_train.data.tokenizer import TextTokenizer, one_line
from nld_train.decode.run import ImagePrompts
from nld_train.errors import UserError, require

PROCESSOR = "processor_config.json"


def read_image_file(path: Path) -> Image.Image:
    """The image of a file in RGB, its first frame, turned as EXIF says. Raises: UserError where there is none."""
    require(path.is_file(), f"no file {path}", "an image file", "check --image")
    try:
        return decode_image(path.read_bytes())
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is no image that can be read: {one_line(error)}",
            f"a whole file of {', '.join(FORMATS)}",
            "convert it, or copy it again",
        ) from error


def check_image_folder(folder: Path) -> None:
    """Raises: UserError for a folder whose model takes no images."""
    require(
        (folder / PROCESSOR).is_file(),
        f"--image with {folder}, which has no {PROCESSOR}",
        "an export of a model with a vision tower",
        "leave --image out, or give another --model",
    )


def load_image_processor(folder: Path) -> Any:
    """transformers' processor of an export with a vision tower. Raises: UserError."""
    from transformers import AutoProcessor  # here, not above: importing it takes seconds

    try:
        return AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # transformers' own checks
        got = f"{folder / PROCESSOR}: {one_line(error)}"
        raise UserError(got, "the processor files of `nld convert export`", "export again") from error


def image_chat_prompts(
    processor: Any, tokenizer: TextTokenizer, images: Sequence[Image.Image], thinking: bool
) -> Callable[[str], ImagePrompts]:
    """The function that makes the prompt of a user's turn: the images first, then the text.

    thinking: whether the answer starts with thinking. The function raises UserError for a text that spells a control
    token: the processor would read it as that token.
    """

    def prompt(text: str) -> ImagePrompts:
        spelled = next((name for name in tokenizer.control_tokens().values() if name in text), None)
        got, do = f"a prompt with images that spells the control token {spelled}", "write it otherwise"
        require(spelled is None, got, "text without control tokens", do)
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        rendered = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=thinking
        )
        inputs = processor(text=[rendered], images=list(images), add_special_tokens=False, return_tensors="pt")
        pixels = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
        return ImagePrompts([inputs["input_ids"][0].tolist()], pixels)

    return prompt

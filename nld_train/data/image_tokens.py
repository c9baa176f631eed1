"""The tokens of images in conversations, by their names in the tokenizer, and the sizes that say how many there are."""

from collections.abc import Sequence
from dataclasses import dataclass

from nld_train.data.tokenizer import TextTokenizer
from nld_train.errors import UserError
from nld_train.vision_config import IMAGE_NAMES, VisionConfig

USUAL_NAMES = ",".join(IMAGE_NAMES)  # as options take them


@dataclass(frozen=True)
class ImageSizes:
    """What turns an image into cells; the defaults are those of the run's vision section."""

    patch_size: int = VisionConfig.patch_size  # pixels
    merge: int = VisionConfig.merge  # patches of a side that become one token
    longest_edge: int = VisionConfig.longest_edge  # pixels

    def __post_init__(self) -> None:
        VisionConfig(patch_size=self.patch_size, merge=self.merge, longest_edge=self.longest_edge)  # checks them

    @property
    def cell(self) -> int:
        """Pixels of a side of the square that becomes one token."""
        return self.patch_size * self.merge


@dataclass(frozen=True)
class ImageTokens:
    """The three control tokens of images."""

    names: tuple[str, str, str]
    image: int  # one cell
    row_end: int  # behind each row of cells but the last
    image_end: int  # behind the last one

    def expand(self, rows: int, columns: int) -> list[int]:
        """The tokens of an image of so many cells: rows * (columns + 1)."""
        row = [self.image] * columns
        return [*([*row, self.row_end] * (rows - 1)), *row, self.image_end]


def find_image_tokens(tokenizer: TextTokenizer, names: Sequence[str] | None) -> ImageTokens | None:
    """The tokens of these names; of IMAGE_NAMES where none are given, None where the tokenizer has not all of them.
    Raises UserError for a name that is given and is no control token."""
    controls = {name: number for number, name in tokenizer.control_tokens().items()}
    wanted = tuple(IMAGE_NAMES if names is None else names)
    missing = [name for name in wanted if name not in controls]
    if names is None and missing:
        return None
    if missing or len(set(wanted)) != 3:
        raise UserError(
            f"--image-tokens {','.join(wanted)}: {', '.join(missing) or 'a name'} is no control token of its own",
            "three different control tokens of the tokenizer: of cells, of breaks and of ends",
            "name those that the model was trained with",
        )
    cell, row_end, image_end = wanted
    return ImageTokens((cell, row_end, image_end), *(controls[name] for name in wanted))

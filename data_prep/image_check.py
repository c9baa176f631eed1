"""The bytes of an image, found and checked once: that it decodes, how many cells it has, and what is converted."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from data_prep.image_parts import ImageSource
from nld_train.data.chat_template import ChatProblem
from nld_train.data.image_pixels import BROKEN, FORMATS, ORIENTATION, TURNED_SIDEWAYS, cell_grid, open_image
from nld_train.data.image_tokens import ImageSizes
from nld_train.errors import UserError

MEGAPIXELS, MOST_MEGAPIXELS = 64, 89  # Pillow warns of more than 89 in every process that decodes
KNOWN = 1 << 16  # checked images that a process remembers
DATA_URL = re.compile(r"data:[\w./+-]*(?:;[\w=.+-]+)*;base64,", re.ASCII)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # others are the format's name
TURNED = "images turned as their EXIF says"
FRAMES = "images of several frames, of which the first is taken"
CLEAR = "images with transparency, which is dropped"
PALETTE = "images with a palette, made RGB"
DEEP = "images of more than 8 bits, with values above 255 as white"
CMYK = "images of printing colours, made RGB"
OTHER = "grey images, made RGB"


@dataclass(frozen=True)
class ImageRules:
    """How images are read."""

    names: tuple[str, str, str] | None = None  # tokens of cells, breaks and ends; None: those of the published families
    sizes: ImageSizes = ImageSizes()
    megapixels: int = MEGAPIXELS  # the most that is decoded
    folder: str | None = None  # that paths belong to; None: that of the file which names them

    def __post_init__(self) -> None:
        if not 1 <= self.megapixels <= MOST_MEGAPIXELS:
            raise UserError(f"--megapixels {self.megapixels}", f"1 to {MOST_MEGAPIXELS}", "make larger images smaller")
        if self.folder is not None and not Path(self.folder).is_dir():
            raise UserError(f"--image-folder {self.folder}: no such folder", "an existing folder", "check the path")


@dataclass(frozen=True)
class CheckedImage:
    """An image that decodes."""

    digest: bytes  # SHA-256 of its bytes
    suffix: str  # of a file that holds them
    rows: int  # of cells
    columns: int
    notes: tuple[str, ...]  # what is converted when it is decoded


@dataclass
class ImageChecker:
    """Checks the images of one process, each of them once."""

    rules: ImageRules

    def __post_init__(self) -> None:
        self._known: dict[bytes, CheckedImage] = {}

    def load_image(self, source: ImageSource, beside: Path) -> tuple[bytes, CheckedImage]:
        """The bytes of an image as they came, and what is known of it. beside: the file that names it. Raises
        ChatProblem."""
        data = source if isinstance(source, bytes) else self._find_bytes(source, beside)
        digest = hashlib.sha256(data).digest()
        if digest not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[digest] = check_image(data, digest, self.rules)
        return data, self._known[digest]

    def _find_bytes(self, source: str, beside: Path) -> bytes:
        found = DATA_URL.match(source)
        if found is not None:
            try:
                return base64.b64decode(source[found.end() :], validate=True)
            except binascii.Error as error:
                raise ChatProblem(f"an image that is no base64: {error}") from error
        if source.startswith("data:"):
            raise ChatProblem(f"a data URL without base64: {source[:40]}")
        if SCHEME.match(source):
            raise ChatProblem(f"an image behind a URL, and nothing is downloaded: {source[:80]}")
        return read_named_image(source, beside, self.rules.folder)


def read_named_image(name: str, beside: Path, folder: str | None) -> bytes:
    """The bytes of an image file below the folder that is given, or else below that of the file which names it. Raises
    ChatProblem for a path that leads out of it, by links too."""
    root = (beside.parent if folder is None else Path(folder)).resolve()
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root) or (folder is None and Path(name).is_absolute()):
            raise ChatProblem(f"an image outside of its folder, which --image-folder may name: {name[:200]}")
        if not path.is_file():
            raise ChatProblem(f"no image file: {name[:200]}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a name that no file can have, or a file that cannot be read
        raise ChatProblem(f"an image file that cannot be read: {name[:200]}: {' '.join(str(error).split())}") from error


def check_image(data: bytes, digest: bytes, rules: ImageRules) -> CheckedImage:
    """Decode an image whole. Raises ChatProblem where that cannot be done, or it has more pixels than allowed: they are
    counted by its header, before any is decoded."""
    try:
        image = open_image(data)
        width, height = image.size
        if width * height > rules.megapixels * 1_000_000:
            raise ChatProblem(f"an image of more than {rules.megapixels} megapixels: {width}x{height}")
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        notes = [TURNED] if orientation != 1 else []
        notes += [*conversions(image), *([FRAMES] if has_second_frame(image) else [])]
    except Image.DecompressionBombError as error:
        raise ChatProblem(f"an image of more than {rules.megapixels} megapixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ChatProblem(f"a broken image: none of {', '.join(FORMATS)}") from error
    except BROKEN as error:
        raise ChatProblem(f"a broken image: {' '.join(str(error).split()) or type(error).__name__}") from error
    if orientation in TURNED_SIDEWAYS:
        width, height = height, width
    rows, columns = cell_grid(height, width, rules.sizes.cell, rules.sizes.longest_edge)
    if not rows or not columns:
        got = f"{width}x{height} at a longest edge of {rules.sizes.longest_edge}"
        raise ChatProblem(f"an image whose short side would be less than a pixel: {got}")
    assert image.format is not None, "it was opened from bytes"
    suffix = SUFFIXES.get(image.format, f".{image.format.lower()}")
    return CheckedImage(digest, suffix, rows, columns, tuple(notes))


def has_second_frame(image: Image.Image) -> bool:
    """Whether something follows the first frame."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def conversions(image: Image.Image) -> list[str]:
    """What becomes of the colours of a decoded image."""
    if image.mode == "RGB":
        return [CLEAR] if "transparency" in image.info else []
    clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    kinds = {"P": PALETTE, "PA": PALETTE, "CMYK": CMYK, "YCbCr": CMYK, "LAB": CMYK}
    if image.mode.startswith(("I", "F")):
        return [DEEP]
    named = kinds.get(image.mode, OTHER if image.mode in ("L", "1", "LA", "La") else "")
    return [note for note in ((CLEAR if clear else ""), named) if note]

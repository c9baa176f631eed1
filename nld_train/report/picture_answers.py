"""Pictures with their questions and the answers of every mode, as part of a page that needs no other file."""

import base64
import mimetypes
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

NARROWEST = 192  # pixels: smaller pictures are shown larger
STYLE = (
    "<style>.picture{display:flex;gap:1.2em;align-items:flex-start;margin:1em 0}"
    ".picture img{image-rendering:pixelated;border:1px solid #8884}.picture td{white-space:pre-line}</style>"
)


def picture_answers(figures: Mapping[str, Any]) -> str:
    """The HTML of the pictures in the figures of `nld eval decode`; "" where there are none."""
    if "pictures" not in figures:
        return ""
    blank = bool(figures["identity"].get("blank_images"))
    said = "The model was shown grey images in place of these." if blank else "What the model was shown."
    parts = "".join(_picture_html(picture) for picture in figures["pictures"])
    return f"{STYLE}<h3>Pictures and answers</h3><p>{said}</p>{parts}"


def _picture_html(picture: Mapping[str, Any]) -> str:
    images = "".join(_image_html(Path(name)) for name in picture["images"])
    rows = [(name, text, text == picture["reference"]) for name, text in picture["answers"].items()]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td><td>{'&#10003;' if right else ''}</td></tr>"
        for name, text, right in rows
    )
    asked = f"<b>{escape(picture['question'])}</b>"
    wanted = "" if picture["reference"] is None else f"<p>right: {escape(picture['reference'])}</p>"
    return f'<div class="picture"><div>{images}</div><div>{asked}{wanted}<table>{cells}</table></div></div>'


def _image_html(path: Path) -> str:
    """The image itself, or, where it is gone, its name."""
    if not path.is_file():
        return f"<p>no file {escape(str(path))}</p>"
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.name)}" style="min-width:{NARROWEST}px" src="data:{kind};base64,{data}">'

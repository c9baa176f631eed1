"""Where the images of a row are, and at which places of its messages they stand."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nld_train.data.chat_template import ChatProblem, ImagePlace, Message

ImageSource = bytes | str  # its bytes, or its path or URL

ROW_KEYS = ("image", "images")  # of a row: one image, or several
PARTS = ("image", "image_url", "input_image")  # types of parts that are an image
PART_KEYS = ("image", "image_url", "url", "path")  # of such a part, where the image is
MARK = "<image>"  # in the texts of a row that has images, the place of the next one
KNOWN = "bytes, paths and data URLs"
IN_ANSWER = "an answer that holds an image"


def read_image_part(part: Mapping[str, object]) -> tuple[ImagePlace, list[str]]:
    """The image of a typed part, in front of whatever follows, and the keys that were used. Raises ChatProblem."""
    filled = [key for key in PART_KEYS if part.get(key) not in (None, "", {})]
    if len(filled) > 1:
        raise ChatProblem(f"a part with two images: under {' and '.join(filled)}")
    if not filled:
        if part["type"] != "image":
            raise ChatProblem(f"an image part without an image: type {part['type']!r}")
        return ImagePlace(0), []
    value = part[filled[0]]
    if isinstance(value, dict) and filled[0] == "image_url":
        value = value.get("url")
    return ImagePlace(0, read_image_source(value)), filled


def read_image_source(value: object) -> ImageSource:
    """An image as data holds it: bytes, a path or URL, or both as the datasets library keeps them. Raises
    ChatProblem."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        value = path if data is None else data
    if not isinstance(value, bytes | str) or not value:
        raise ChatProblem(f"an image part without an image: {type(value).__name__}, known are {KNOWN}")
    return value


def read_row_images(row: Mapping[str, object]) -> list[ImageSource]:
    """The images beside the turns of a row, in order. Raises ChatProblem."""
    filled = [key for key in ROW_KEYS if row.get(key) not in (None, "", [], {})]
    if len(filled) > 1:
        raise ChatProblem(f"images under two names: {' and '.join(filled)}")
    found = row[filled[0]] if filled else []
    return [read_image_source(value) for value in (found if isinstance(found, list) else [found])]


def place_images(messages: Sequence[Message], beside: Sequence[ImageSource], in_front: bool) -> list[Message]:
    """The messages with every image in its place: those that parts bring along, and those `beside` the turns, one for
    each part without an image of its own or, where no part is such, for each mark in the texts.

    in_front: without a mark, the images beside the turns stand in front of the first question. Raises ChatProblem where
    places and images are not as many, and for an image in an answer.
    """
    taken = list(messages)
    if beside and not any(image.source is None for message in taken for image in message.images):
        if in_front and not any(MARK in (message.content or "") for message in taken):
            taken = _put_in_front(taken, len(beside))
        else:
            taken = [_read_marks(message) for message in taken]
    if any(message.images and message.role == "assistant" for message in taken):
        raise ChatProblem(IN_ANSWER)
    places = sum(image.source is None for message in taken for image in message.images)
    if places > len(beside):
        raise ChatProblem(f"more places for images than images: {places} places, {len(beside)} images")
    if places < len(beside):
        raise ChatProblem(f"fewer places for images than images: {places} places, {len(beside)} images")
    if not beside:
        return taken
    left = iter(beside)
    return [replace(message, images=tuple(_with_source(image, left) for image in message.images)) for message in taken]


def _with_source(image: ImagePlace, left: Iterator[ImageSource]) -> ImagePlace:
    """An image with its source, the next one of the row where it has none."""
    return replace(image, source=next(left)) if image.source is None else image


def image_sources(messages: Sequence[Message]) -> list[ImageSource]:
    """The images of placed messages, in order."""
    sources = [image.source for message in messages for image in message.images]
    assert None not in sources, "place_images found them"
    return [source for source in sources if source is not None]


def _read_marks(message: Message) -> Message:
    """A message with the marks in its text as places of images; one that has images as parts stays as it is."""
    if message.content is None or message.images or MARK not in message.content:
        return message
    pieces, places, length = message.content.split(MARK), [], 0
    for piece in pieces[:-1]:
        length += len(piece)
        places.append(ImagePlace(length))
    return replace(message, content="".join(pieces), images=tuple(places))


def _put_in_front(messages: Sequence[Message], count: int) -> list[Message]:
    first = next((number for number, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise ChatProblem("images, and no question that they could belong to")
    asked = messages[first]
    moved = replace(asked, images=(*[ImagePlace(0)] * count, *asked.images))
    return [*messages[:first], moved, *messages[first + 1 :]]

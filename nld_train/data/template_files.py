"""Where a tokenizer folder keeps its chat templates."""

from dataclasses import dataclass
from pathlib import Path

from nld_train.data.tokenizer import CONFIG, read_tokenizer_config
from nld_train.errors import UserError
from nld_train.json_file import read_json_object

TEMPLATE = "chat_template.jinja"
PROCESSOR_TEMPLATE = "chat_template.json"  # processors of pictures and sound keep it here
MORE_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
TEMPLATE_KEY = "chat_template"  # in tokenizer_config.json, where older folders keep it
DEFAULT_NAME, TOOLS_NAME = "default", "tool_use"  # transformers takes the second one where there are tools


@dataclass(frozen=True)
class FoundTemplate:
    """The templates that a folder's conversations are written with."""

    text: str
    origin: str  # where it was found, for messages
    source: str  # the kind of place, for the manifest
    tools_text: str | None = None  # for conversations with tools, where the folder has one of its own for them


def find_templates(folder: Path) -> FoundTemplate | None:
    """The templates of a folder, None where it has none.

    The first of chat_template.jinja, the key chat_template of tokenizer_config.json, and chat_template.json is the
    default; additional_chat_templates/NAME.jinja are others by name. Raises UserError where a template cannot be read,
    or where there are some and none of them is the default.
    """
    named, origin, source = _first_place(folder)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        named.setdefault(path.stem, _read_text(path))
        origin, source = (origin, source) if source else (str(path.parent), MORE_TEMPLATES)
    if not named:
        return None
    if DEFAULT_NAME not in named:
        raise UserError(
            f"{origin} has the chat templates {', '.join(sorted(named))}, without a default",
            "one template, or several by name with one that is called default",
            f"copy the one that is meant to {folder / TEMPLATE}",
        )
    return FoundTemplate(named[DEFAULT_NAME], origin, source, named.get(TOOLS_NAME))


def _first_place(folder: Path) -> tuple[dict[str, str], str, str]:
    """(text by name, origin, source) of the first place that has a template; empty where none has."""
    path = folder / TEMPLATE
    if path.is_file():
        return {DEFAULT_NAME: _read_text(path)}, str(path), TEMPLATE
    config = read_tokenizer_config(folder) if (folder / CONFIG).is_file() else {}
    if config.get(TEMPLATE_KEY) is not None:
        origin = f"{folder / CONFIG}, key {TEMPLATE_KEY}"
        return _by_name(config[TEMPLATE_KEY], origin), origin, CONFIG
    path = folder / PROCESSOR_TEMPLATE
    if path.is_file():
        found = read_json_object(path, "a tokenizer's folder").get(TEMPLATE_KEY)
        return _by_name(found, str(path)), str(path), PROCESSOR_TEMPLATE
    return {}, "", ""


def _by_name(found: object, origin: str) -> dict[str, str]:
    """Templates by name, from a text or from the lists and objects that folders keep several in."""
    if isinstance(found, list):
        found = {
            entry.get("name"): entry.get("template") if isinstance(entry, dict) else None
            for entry in found
            if isinstance(entry, dict)
        }
    named = {DEFAULT_NAME: found} if isinstance(found, str) else found
    if not isinstance(named, dict) or not named or not all(isinstance(text, str) for text in named.values()):
        raise UserError(
            f"{origin}: {TEMPLATE_KEY} is a {type(found).__name__} without a template",
            "a Jinja template as a string, or several by name",
            f"write the template into {TEMPLATE}",
        )
    return {str(name): text for name, text in named.items()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}", "a Jinja template", "copy the file again") from error

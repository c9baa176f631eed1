"""JSON files that hold an object."""

import json
from pathlib import Path
from typing import Any

from nld_train.errors import UserError


def read_json_object(path: Path, allowed: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}", allowed, "check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "a JSON object", "copy the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object", "a JSON object", "copy the file again")
    return content


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

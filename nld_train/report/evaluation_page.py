"""The page of evaluations: what `nld eval` wrote into one folder or several, beside each other, in one HTML file."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nld_train.errors import UserError, require
from nld_train.files import check_output_file, write_text
from nld_train.json_file import read_json_object
from nld_train.report.comparison_table import comparison_table
from nld_train.report.decoding_section import decoding_section
from nld_train.report.html_page import html_page
from nld_train.report.score_sections import likelihood_section, tasks_section
from nld_train.report.speed_of_light_section import speed_of_light_section

# Kind -> the function that makes its part of the page, from the checkpoint's name and the figures in KIND.json.
SECTIONS: Mapping[str, Callable[[str, Mapping[str, Any]], str]] = {
    "likelihood": likelihood_section,
    "decode": decoding_section,
    "sol": speed_of_light_section,
    "tasks": tasks_section,
}
WRITTEN = "the --output of `nld eval`"


def write_evaluation_page(folders: Sequence[Path], target: Path) -> None:
    """Write the page of these folders. Raises: UserError where one holds no figures, or `target` has no folder."""
    check_output_file(target)
    write_text(target, html_page("Evaluation", "", ["<h1>Evaluation</h1>", evaluation_sections(folders)]))


def evaluation_sections(folders: Sequence[Path]) -> str:
    """The parts of all folders: kind by kind, so that checkpoints stand beside each other. Raises: UserError."""
    parts, settings = [], []
    found: dict[Path, dict[str, dict[str, Any]]] = {folder: {} for folder in folders}  # folder -> kind -> figures
    for kind, section in SECTIONS.items():
        for folder in folders:
            path = folder / f"{kind}.json"
            if path.is_file():
                figures = read_json_object(path, WRITTEN)
                parts.append(_section_of(path, kind, figures, section))
                text = escape(json.dumps(figures["identity"], indent=1, ensure_ascii=False))
                settings.append(f"<details><summary>{escape(str(path))}</summary><pre>{text}</pre></details>")
                found[folder][kind] = figures
    empty = [str(folder) for folder, kinds in found.items() if not kinds]
    require(not empty, f"no figures in {', '.join(empty)}", WRITTEN, "run `nld eval` first")
    compared = [comparison_table(found)] if len(found) > 1 else []
    return "\n".join([*compared, *parts, "<h2>What was evaluated, and how</h2>", *settings])


def _section_of(
    path: Path, kind: str, figures: dict[str, Any], section: Callable[[str, Mapping[str, Any]], str]
) -> str:
    """A part of the page. Raises: UserError for a file that `nld eval` did not write."""
    try:
        require(figures["kind"] == kind, f"{path} is of the kind {figures['kind']}", kind, "evaluate again")
        return section(figures["identity"]["model"], figures)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"{path} holds other figures: {error!r}", WRITTEN, "evaluate again") from error

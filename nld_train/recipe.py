"""From a recipe and `key=value` overrides to the frozen RunConfig, and from that to text and back."""

import importlib.util
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from nld_train.config import RunConfig
from nld_train.errors import UserError, require
from nld_train.fields import (
    describe_type,
    format_value,
    from_tree,
    leaf_types,
    leaf_values,
    nearest_name,
    parse_value,
    replace_leaves,
    to_tree,
)
from nld_train.json_file import parse_json_object
from nld_train.token_budget import DERIVED, ITERATIONS_OF

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
MOST_CHARACTERS = 300  # of what a recipe's error says
OWN_FORM = "a file that defines run() -> RunConfig, or RUNS: names and such functions"


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Build the run of a recipe, which is a name in the recipes package or the path of a recipe file.

    A recipe file defines `run() -> RunConfig`. A file of several runs defines `RUNS` instead: the name of each, and its
    function. A path chooses one of them as FILE.py:NAME.

    `overrides`: "dotted.key=value" each, read by the setting's type. All of them are put in before anything is checked.

    Raises: UserError for an unknown recipe, key or value, and for settings that contradict each other.
    """
    values = parse_overrides(overrides)
    path, name = find_recipe_file(recipe)
    function = _chosen_run(path, name)
    with recipe_errors(path):
        run = function()
    if not isinstance(run, RunConfig):
        raise UserError(f"the recipe {recipe} gave a {type(run).__name__}", "a RunConfig", "return one")
    with recipe_errors(path):
        tree = to_tree(run)
    return replace_settings(from_tree(RunConfig, tree), values)


def replace_settings(run: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """Copy a run with the settings under the dotted keys replaced.

    A length given in tokens keeps its tokens where batch or row length change, and its iterations follow. A length in
    iterations takes the place of the same length in tokens, and the other way round.

    Raises: UserError for settings that contradict each other.
    """
    changed, before = dict(values), leaf_values(run)
    for in_tokens, in_iterations in ITERATIONS_OF.items():
        require(
            in_tokens not in values or in_iterations not in values,
            f"{in_tokens} and {in_iterations} given",
            "one of the two: the other follows",
            "take one of them away",
        )
        if in_iterations in values:
            changed[in_tokens] = None
        elif changed.get(in_tokens, before[in_tokens]) is not None:
            changed[in_iterations] = DERIVED
    return replace_leaves(run, changed)


def recipe_names() -> list[str]:
    """List the names of all runs of the recipes package."""
    return sorted(_packaged_runs())


def find_recipe_file(recipe: str) -> tuple[Path, str | None]:
    """Find the file of a recipe given by name or by path, and the name of the run in it; None stands for its only run.

    Raises: UserError.
    """
    if recipe.endswith(".py") or "/" in recipe:
        file, colon, name = recipe.partition(".py:")
        path = Path(f"{file}.py" if colon else recipe)
        if path.suffix == ".py" and path.is_file():
            return path, name or None
        raise UserError(
            f"recipe {recipe!r}", "an existing .py file, or a name", f"use one of {', '.join(recipe_names())}"
        )
    files = _packaged_runs()
    if recipe in files:
        return files[recipe], recipe
    raise UserError(f"recipe {recipe!r}", ", ".join(sorted(files)), f"did you mean {nearest_name(recipe, files)}?")


def portable_recipe_name(recipe: str) -> str:
    """Give a recipe's name as it is, or its path in the form that holds in every folder."""
    return str(Path(recipe).absolute()) if "/" in recipe else recipe


def _packaged_runs() -> dict[str, Path]:
    """The name and the file of every run of the recipes package."""
    files = sorted(path for path in RECIPES.glob("*.py") if not path.stem.startswith("_"))
    return {name: path for path in files for name in _runs_of_file(path)}


def _chosen_run(path: Path, name: str | None) -> Callable[[], object]:
    runs = _runs_of_file(path)
    if name is None and len(runs) == 1:
        return next(iter(runs.values()))
    if name is None or name not in runs:
        got = f"{path} without the name of a run" if name is None else f"no run {name!r} in {path}"
        raise UserError(got, ", ".join(runs), f"write {path}:{nearest_name(name or path.stem, runs)}")
    return runs[name]


def _runs_of_file(path: Path) -> Mapping[str, Callable[[], object]]:
    """The name and the function of every run of a recipe file."""
    module = _recipe_module(path)
    runs: object = vars(module).get("RUNS") or {path.stem: vars(module).get("run")}
    if not isinstance(runs, dict) or not all(callable(function) for function in runs.values()):
        raise UserError(f"{path} without run()", OWN_FORM, "define it")
    return runs


def _recipe_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nld_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    with recipe_errors(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def recipe_errors(path: Path) -> Iterator[None]:
    """Turn whatever a recipe raises, which is a program of the user's own, into one line with its place.

    Raises: UserError.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno}: {error.msg}", "Python", "correct the recipe") from error
    except BaseException as error:  # sys.exit() in a recipe too: its status would stand for that of a run
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        said = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_CHARACTERS]
        place = f"{path} line {lines[-1]}" if lines else str(path)
        raise UserError(f"{place}: {said}", OWN_FORM, "correct the recipe") from error


def parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """Map the dotted keys of "key=value" texts to their values, each read by the type of its setting.

    Raises: UserError.
    """
    known = leaf_types(RunConfig)
    values: dict[str, object] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}", "key=value", f"write {_suggestion(key, known)}=VALUE")
        if key not in known:
            raise UserError(f"unknown setting {key!r}", "the settings of the recipe", _do(key, known))
        if key in values:
            raise UserError(f"{key} given twice", "once", "take one of them away")
        values[key] = parse_value(key, known[key], text)
    return values


def _suggestion(key: str, known: dict[str, object]) -> str:
    return key if key in known else nearest_name(key, known)


def _do(key: str, known: dict[str, object]) -> str:
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"{key!r} is a section; set one of {', '.join(inside)}"
    closest = nearest_name(key, known)
    return f"did you mean {closest}? ({describe_type(known[closest])})"


def dump_settings(run: RunConfig, overrides: Sequence[str] = ()) -> str:
    """Write every setting of a run on a line under its section, in the spelling of an override.

    The text marks the settings in `overrides`, iterations that follow from tokens, and tokens that iterations make.
    """
    overridden = {override.partition("=")[0] for override in overrides}
    lines, section = [], ""
    for key, value in sorted(leaf_values(run).items(), key=lambda item: "." in item[0]):
        head, dot, rest = key.partition(".")
        if dot and head != section:
            section = head
            lines.append(f"\n[{section}]")
        mark = "override" if key in overridden else _length_mark(key, run)
        line = f"{rest if dot else key:<28} = {format_value(value)}"
        lines.append(f"{line}    <- {mark}" if mark else line)
    return "\n".join(lines)


def _length_mark(key: str, run: RunConfig) -> str | None:
    """Say what another setting makes of a length of the run."""
    if key == "train.tokens" and run.train.tokens is None:
        tokens = run.train.iterations * run.train.global_batch * run.data.sequence_length
        return f"{format_value(tokens)}, which train.iterations make"
    values = leaf_values(run)
    for in_tokens, in_iterations in ITERATIONS_OF.items():
        if key == in_iterations and values[in_tokens] is not None:
            return f"{in_tokens} / (train.global_batch x data.sequence_length)"
    return None


def run_to_json(run: RunConfig) -> str:
    """Write the whole run as JSON, of which `run_from_json` makes an equal run."""
    return json.dumps(to_tree(run), indent=2, allow_nan=False)


def run_from_json(text: str) -> RunConfig:
    """Read the run that `run_to_json` wrote.

    Raises: UserError if `text` is no JSON, or not exactly the settings of a run.
    """
    return from_tree(RunConfig, parse_json_object(text.encode("utf-8", "surrogatepass"), "a frozen configuration"))

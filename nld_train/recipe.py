"""From a recipe and `key=value` overrides to the frozen RunConfig, and that to text and back."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.errors import UserError
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

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of a recipe: a name in the recipes package, or the path of a .py file that defines `run() -> RunConfig`.

    `overrides`: "dotted.key=value" each, read by the setting's type. All of them are put in before anything is checked.

    Raises: UserError for an unknown recipe, key or value, and for settings that contradict each other.
    """
    values = parse_overrides(overrides)
    path = find_recipe_file(recipe)
    run = _run_function(path)()
    if not isinstance(run, RunConfig):
        raise UserError(f"run() of {path} gave a {type(run).__name__}", "a RunConfig", "return one from run()")
    return replace_leaves(from_tree(RunConfig, to_tree(run)), values)


def recipe_names() -> list[str]:
    """The recipes of the recipes package."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if not path.stem.startswith("_"))


def find_recipe_file(recipe: str) -> Path:
    """The file of a recipe given by name or by path.

    Raises: UserError.
    """
    if recipe.endswith(".py") or "/" in recipe:
        path = Path(recipe)
        if path.suffix == ".py" and path.is_file():
            return path
        raise UserError(
            f"recipe {recipe!r}", "an existing .py file, or a name", f"use one of {', '.join(recipe_names())}"
        )
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.py"
    raise UserError(
        f"recipe {recipe!r}", ", ".join(recipe_names()), f"did you mean {nearest_name(recipe, recipe_names())}?"
    )


def portable_recipe_name(recipe: str) -> str:
    """A recipe's name as it is; its path as other folders know it."""
    return str(Path(recipe).absolute()) if "/" in recipe else recipe


def _run_function(path: Path) -> Callable[[], object]:
    spec = importlib.util.spec_from_file_location(f"nld_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None, f"no loader for {path}"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno}: {error.msg}", "Python", "correct the recipe") from None
    function: object = vars(module).get("run")
    if not callable(function):
        raise UserError(f"{path} without run()", "a file that defines run() -> RunConfig", "define it")
    return function


def parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    """Dotted key -> value of "key=value" texts.

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
    """Every setting, one a line under its section, in the spelling of an override; those in `overrides` are marked."""
    changed = {override.partition("=")[0] for override in overrides}
    lines, section = [], ""
    for key, value in sorted(leaf_values(run).items(), key=lambda item: "." in item[0]):
        head, dot, rest = key.partition(".")
        if dot and head != section:
            section = head
            lines.append(f"\n[{section}]")
        line = f"{rest if dot else key:<28} = {format_value(value)}"
        lines.append(f"{line}    <- override" if key in changed else line)
    return "\n".join(lines)


def run_to_json(run: RunConfig) -> str:
    """The whole run as JSON; `from_json` gives back an equal one."""
    return json.dumps(to_tree(run), indent=2, allow_nan=False)


def run_from_json(text: str) -> RunConfig:
    """The run that `to_json` wrote.

    Raises: UserError if `text` is no JSON, or not exactly the settings of a run.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"a frozen configuration that is not JSON (line {error.lineno}: {error.msg})"
        raise UserError(what, "what `nld train` wrote", "write it again from its recipe") from None
    return from_tree(RunConfig, tree)

"""Who may import whom [design section 2]: read from the syntax trees, imports inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HEART = {
    "types",
    "config",
    "layouts",
    "errors",
    "fields",
    "recipe",
    "data",
    "noise",
    "dual_stream",
    "attention",
    "loss",
    "plan",
}
MEGATRON = {"megatron", "transformer_engine"}
# The heart's one door to Transformer Engine: its kernels, called by name, imported when they are first used.
KERNELS = Path("nld_train/attention/te_call.py")
SIZES = "nld_train.model.sizes"  # numbers alone
# A room imports itself and the rooms before it.
ORDER = [
    *["errors", "layouts", "config", "fields", "types", "recipe", "run_folder", "checkpoint_files", "job_record"],
    *["data", "noise"],
    # The model's head calls the loss that needs no logits, so the losses, pure functions, come before the model.
    *["dual_stream", "attention", "loss", "model", "plan", "bench", "report", "train", "checkpoint", "convert", "hf"],
    *["decode", "eval"],
    *["doctor", "launch", "cli"],
]


def room(path: Path) -> str:
    """nld_train/noise/law.py -> noise; nld_train/config.py -> config."""
    return Path(path.parts[1]).stem


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, where) of every import. `from a import b` gives a and a.b: b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: -node.level] if node.level else ()
            origin = ".".join([*package, *([node.module] if node.module else [])])
            found = [origin, *[f"{origin}.{alias.name}" for alias in node.names]]
        else:
            continue
        for module in found:
            yield module, f"{path}:{node.lineno} imports {module}"


@pytest.fixture(scope="module")
def own(trees) -> dict[Path, ast.Module]:
    """Trees of nld_train in its rooms; the package's own __init__ has none."""
    return {path: tree for path, tree in trees.items() if path.parts[0] == "nld_train" and path.name != "__init__.py"}


def test_the_heart_knows_no_megatron(own) -> None:
    heart = [(path, tree) for path, tree in own.items() if room(path) in HEART]
    assert {room(path) for path, _ in heart} == HEART
    wrong = [
        where
        for path, tree in heart
        for module, where in imports(path, tree)
        if module.split(".")[0] in MEGATRON | {"recipes"}
        if not (path == KERNELS and inside(module, "transformer_engine"))
    ]
    assert not wrong, f"the heart is pure torch: move this into nld_train/model or nld_train/train: {wrong}"


def test_the_heart_imports_transformer_engine_in_one_function(own) -> None:
    """So that importing the file is pure torch, on a laptop without it too."""
    (library,) = (node for node in own[KERNELS].body if isinstance(node, ast.FunctionDef) and node.name == "library")
    everywhere, within = (
        [where for module, where in imports(KERNELS, tree) if inside(module, "transformer_engine")]
        for tree in (own[KERNELS], ast.Module([library], []))
    )
    assert everywhere and everywhere == within


def test_the_heart_imports_the_heart_alone(own) -> None:
    wrong = [
        where
        for path, tree in own.items()
        if room(path) in HEART
        for module, where in imports(path, tree)
        if inside(module, "nld_train") and module not in ("nld_train", "nld_train.model")
        if module.split(".")[1] not in HEART and not inside(module, SIZES)
    ]
    assert not wrong, f"hand the value in as an argument, or move the function to a room of the heart: {wrong}"


def test_a_room_imports_only_rooms_before_it(own) -> None:
    unknown = {room(path) for path in own} - set(ORDER)
    assert not unknown, f"give {unknown} a place in ORDER, as design section 2 has it"
    wrong = [
        where
        for path, tree in own.items()
        for module, where in imports(path, tree)
        if inside(module, "nld_train") and module.count(".") and not inside(module, SIZES)
        if module.split(".")[1] in ORDER and ORDER.index(module.split(".")[1]) > ORDER.index(room(path))
    ]
    assert not wrong, f"imports go against the flow data -> noise -> ... -> train: turn the call around: {wrong}"


def test_nobody_but_the_command_imports_train_or_recipes(trees) -> None:
    wrong = [
        where
        for path, tree in trees.items()
        if path != Path("nld_train/cli.py")
        for module, where in imports(path, tree)
        if (inside(module, "nld_train.train") and path.parts[:2] != ("nld_train", "train"))
        or (inside(module, "recipes") and path.parts[0] != "recipes")
    ]
    assert not wrong, f"move what both need into an earlier room: {wrong}"


def test_the_hugging_face_files_import_nobody(trees) -> None:
    wrong = [
        where
        for path, tree in trees.items()
        if path.parts[:2] == ("nld_train", "hf")
        for module, where in imports(path, tree)
        if module.split(".")[0] in {"nld_train", "recipes", "data_prep"} | MEGATRON
        if not inside(module, "nld_train.hf")  # beside each other, by relative import
    ]
    assert not wrong, f"nld_train/hf travels alone inside exports: copy the few lines it needs: {wrong}"


def test_data_preparation_uses_the_file_format_alone(trees) -> None:
    allowed = ("data_prep", "nld_train.data", "nld_train.errors")
    wrong = [
        where
        for path, tree in trees.items()
        if path.parts[0] == "data_prep"
        for module, where in imports(path, tree)
        if module.split(".")[0] in {"nld_train", "recipes"} | MEGATRON and module != "nld_train"
        if not any(inside(module, package) for package in allowed)
    ]
    assert not wrong, f"data_prep may use nld_train.data and nld_train.errors: {wrong}"

"""Who may import whom [design section 2]: read from the syntax trees, imports inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# Rooms and ground-floor files that know no Megatron, so that a laptop can prove them. The rest of the supervisor
# (start, node_check, launch, commands) imports none either, but in functions.
HEART = {"data", "noise", "dual_stream", "attention", "loss", "objectives", "plan"}
MEGATRON = {"megatron", "transformer_engine"}
# What may import Megatron: the model, the ranks, and the measurements that stand above them.
WITH_MEGATRON = {"model", "train", "rehearsal"}
MEGATRON_FILES = {Path("nld_train/bench") / name for name in ("megatron_rank.py", "megatron_steps.py", "attention.py")}
# The heart's one door to Transformer Engine: its kernels, called by name, imported when they are first used.
KERNELS = Path("nld_train/attention/fused/te_call.py")
# A room imports itself and the rooms before it.
ORDER = [
    *["errors", "exit_status", "signals", "lasting_output", "files", "json_file", "peft_names", "parallel_layout"],
    *[
        "setting_ranges",
        "token_budget",
        "objective_sections",
        "fp8_recipes",
        "vision_config",
        "config",
        "model_sizes",
        "fields",
        "types",
        "recipe",
        "row_arithmetic",
    ],
    *["run_folder", "hf", "trajectories"],
    *["data", "noise"],
    # The model's head calls the loss that needs no logits, so the losses, pure functions, come before the model.
    *["dual_stream", "attention", "loss", "objectives"],
    *["plan", "model", "report", "train", "bench", "convert", "decode", "evaluation", "sampler"],
    *["doctor", "rehearsal", "node_check", "start", "study", "launch", "commands", "cli"],
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


def test_only_the_model_and_the_ranks_know_megatron(own) -> None:
    wrong = [
        where
        for path, tree in own.items()
        if room(path) not in WITH_MEGATRON and path not in MEGATRON_FILES
        for module, where in imports(path, tree)
        if module.split(".")[0] in MEGATRON
        if not (path == KERNELS and inside(module, "transformer_engine"))
    ]
    assert not wrong, f"move this into nld_train/model or nld_train/train: {wrong}"


def test_the_heart_imports_transformer_engine_in_one_function(own) -> None:
    """So that importing the file is pure torch, on a laptop without it too."""
    functions = (node for node in own[KERNELS].body if isinstance(node, ast.FunctionDef))
    (library,) = (node for node in functions if node.name == "load_transformer_engine")
    everywhere, within = (
        [where for module, where in imports(KERNELS, tree) if inside(module, "transformer_engine")]
        for tree in (own[KERNELS], ast.Module([library], []))
    )
    assert everywhere and everywhere == within


def test_a_room_imports_only_rooms_before_it(own) -> None:
    unknown = {room(path) for path in own} ^ set(ORDER)
    assert not unknown, f"give rooms a place in ORDER, and take those away that are gone: {unknown}"
    wrong = [
        where
        for path, tree in own.items()
        for module, where in imports(path, tree)
        if inside(module, "nld_train") and module.count(".")
        if module.split(".")[1] in ORDER and ORDER.index(module.split(".")[1]) > ORDER.index(room(path))
    ]
    assert not wrong, f"imports go down the list of rooms: turn the call around: {wrong}"


def test_nobody_imports_the_commands_or_recipes(trees) -> None:
    wrong = [
        where
        for path, tree in trees.items()
        if path != Path("nld_train/cli.py")
        for module, where in imports(path, tree)
        if (inside(module, "nld_train.commands") and path.parts[:2] != ("nld_train", "commands"))
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
    allowed = ("data_prep", "nld_train.data", "nld_train.errors", "nld_train.files")
    wrong = [
        where
        for path, tree in trees.items()
        if path.parts[0] == "data_prep"
        for module, where in imports(path, tree)
        if module.split(".")[0] in {"nld_train", "recipes"} | MEGATRON and module != "nld_train"
        if not any(inside(module, package) for package in allowed)
    ]
    assert not wrong, f"data_prep may use nld_train.data, errors and files: {wrong}"

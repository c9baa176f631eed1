"""How the code is written [design section 2]: lengths, no fallbacks, no swallowed errors, typed signatures."""

import ast
from collections.abc import Iterator
from pathlib import Path

LONGEST_FILE, LONGEST_RECIPE = 400, 200  # lines
LONGEST_FUNCTION, NINE_IN_TEN = 80, 45  # lines
# Catch-all handlers: (file, function) -> why.
CATCH_ALL = {
    ("nld_train/train/rank.py", "rank_main"): "the top of a rank: says what failed and exits with status 1",
    (
        "nld_train/train/forked_rank.py",
        "fork_rank",
    ): "the top of a forked rank: its log says what failed, its status is 1",
}
# What a person reads on the terminal comes from the commands; everything else is `logging`.
PRINTS = {"nld_train/cli.py", "data_prep/cli.py", "data_prep/chat_cli.py"}


def prints(path: Path) -> bool:
    return str(path) in PRINTS or path.parts[:2] == ("nld_train", "commands")


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end; decorators are not counted."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def is_catch_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds
    )


def test_files_are_short(committed, root) -> None:
    lengths = {path: len((root / path).read_text().splitlines()) for path in committed if path.suffix == ".py"}
    ceilings = {path: LONGEST_RECIPE if path.parts[0] == "recipes" else LONGEST_FILE for path in lengths}
    wrong = [
        f"{path}: {lengths[path]} lines, at most {ceilings[path]}" for path in lengths if lengths[path] > ceilings[path]
    ]
    assert not wrong, f"split by what the parts are about: {wrong}"


def test_no_function_is_long(trees) -> None:
    wrong = [
        f"{path}:{function.lineno} {function.name}: {length(function)} lines"
        for path, tree in trees.items()
        for function in functions(tree)
        if length(function) > LONGEST_FUNCTION
    ]
    assert not wrong, f"at most {LONGEST_FUNCTION} lines: give its steps names: {wrong}"


def test_nine_functions_in_ten_are_small(trees) -> None:
    package = {path: tree for path, tree in trees.items() if path.parts[0] != "recipes"}
    found = sorted(
        (length(function), f"{path} {function.name}") for path, tree in package.items() for function in functions(tree)
    )
    tenth = found[int(0.9 * len(found))][0]
    assert tenth <= NINE_IN_TEN, f"the 90th percentile is {tenth} lines, at most {NINE_IN_TEN}: split {found[-5:]}"


def test_nothing_is_looked_up_with_a_fallback(trees) -> None:
    wrong = [
        f"{path}:{call.lineno}" for path, tree in trees.items() for call in calls(tree, "getattr") if len(call.args) > 2
    ]
    assert not wrong, f"getattr with a default: make the attribute certain, or raise an error that names it: {wrong}"


def test_no_handler_swallows_every_error(trees) -> None:
    found = {
        (str(path), function.name): f"{path}:{handler.lineno} in {function.name}"
        for path, tree in trees.items()
        for function in functions(tree)
        for handler in ast.walk(function)
        if isinstance(handler, ast.ExceptHandler) and is_catch_all(handler)
        if not any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    }
    wrong = [where for key, where in found.items() if key not in CATCH_ALL]
    assert not wrong, f"name the errors that are meant, or raise again: {wrong}"
    stale = [key for key in CATCH_ALL if key not in found]
    assert not stale, f"no such handler any more: take it out of CATCH_ALL: {stale}"


def test_handlers_outside_functions_name_their_errors(trees) -> None:
    wrong = [
        f"{path}:{handler.lineno}"
        for path, tree in trees.items()
        for statement in tree.body
        if not isinstance(statement, Function | ast.ClassDef)
        for handler in ast.walk(statement)
        if isinstance(handler, ast.ExceptHandler) and is_catch_all(handler)
    ]
    assert not wrong, f"name the errors that are meant: {wrong}"


def test_only_the_command_prints(trees) -> None:
    wrong = [
        f"{path}:{call.lineno}" for path, tree in trees.items() if not prints(path) for call in calls(tree, "print")
    ]
    assert not wrong, f"use `logging`, or return the text to the command: {wrong}"


def test_public_signatures_are_typed(trees) -> None:
    wrong = [
        f"{path}:{function.lineno} {function.name}: {', '.join(untyped)}"
        for path, tree in trees.items()
        for function in public_functions(tree)
        if (untyped := untyped_parts(function))
    ]
    assert not wrong, f"write the types: {wrong}"


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions of the module and methods of its classes, but for _private ones; __dunder__ methods count."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for owner in (tree, *classes):
        for node in owner.body:
            if isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
                yield node


def untyped_parts(function: Function) -> list[str]:
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    missing = [entry.arg for entry in named if entry.annotation is None and entry.arg not in ("self", "cls")]
    return missing + (["its result"] if function.returns is None else [])


def test_the_walker_sees_what_it_is_meant_to_see() -> None:
    """A rule that finds nothing must be able to find something."""
    source = "class A:\n  def m(self, a):\n    try: getattr(a, 'b', 1)\n    except (ValueError, Exception): print(a)\n"
    tree = ast.parse(source)
    (handler,) = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    assert is_catch_all(handler) and is_catch_all(ast.parse("try: 1\nexcept: 2").body[0].handlers[0])
    assert not is_catch_all(ast.parse("try: 1\nexcept OSError: 2").body[0].handlers[0])
    assert [untyped_parts(function) for function in public_functions(tree)] == [["a", "its result"]]
    assert len(list(calls(tree, "print"))) == len(list(calls(tree, "getattr"))) == 1
    assert [length(function) for function in functions(tree)] == [3]


def test_every_package_has_an_empty_init(trees, root) -> None:
    folders = {path.parent for path in trees}
    missing = [str(folder) for folder in sorted(folders) if folder / "__init__.py" not in trees]
    assert not missing, f"add an empty __init__.py to {missing}"
    full = [str(path) for path in trees if path.name == "__init__.py" and (root / path).stat().st_size]
    assert not full, f"an import of one file must not drag in a room: empty {full}, import from the files themselves"


def test_the_lists_of_exceptions_name_real_files(root) -> None:
    named = [Path(name) for name in (*PRINTS, *(file for file, _ in CATCH_ALL))]
    assert all((root / path).is_file() for path in named)

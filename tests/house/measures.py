"""How the house reads, in numbers: `.venv/bin/python -m tests.house.measures` prints them, test_measures.py asserts."""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parents[2]
CODE = ("nld_train", "data_prep")
# [B, L], [R, V / ranks], [] or a scalar, or said to be of any shape; tokens[i] is none.
SHAPE = re.compile(r"(?<!\w)\[[\w\s',/*+().-]*\]|\b[Ss]calars?\b|\bany shape\b")
MOST_PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef
Trees = Mapping[Path, ast.Module]


@dataclass(frozen=True)
class Measure:
    """One line: how many of how many, and the most or the least share that is allowed."""

    name: str
    count: int
    total: int
    most: float | None = None
    least: float | None = None
    where: tuple[str, ...] = ()  # what counts against it

    @property
    def share(self) -> float:
        return self.count / max(1, self.total)

    @property
    def holds(self) -> bool:
        return (self.most is None or self.share <= self.most) and (self.least is None or self.share >= self.least)


def read_trees() -> dict[Path, ast.Module]:
    """The syntax tree of every file of nld_train and data_prep."""
    files = sorted(chain.from_iterable((ROOT / folder).rglob("*.py") for folder in CODE))
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def one_word_names(trees: Trees) -> Measure:
    """Public functions whose name is a single word: they say nothing to a reader who sees only the import."""
    functions = [(path, node.name) for path, node in public_definitions(trees) if isinstance(node, Function)]
    wrong = tuple(f"{path}: {name}" for path, name in functions if "_" not in name)
    return Measure("public functions with one-word names", len(wrong), len(functions), most=0.10, where=wrong)


def shared_names(trees: Trees) -> Measure:
    """Public functions and classes whose name stands in another file too."""
    defined = [(node.name, path) for path, node in public_definitions(trees)]
    often = Counter(name for name, _ in set(defined))
    wrong = tuple(f"{path}: {name}" for name, path in defined if often[name] > 1)
    return Measure("public names that two files have", len(wrong), len(defined), most=0.03, where=wrong)


def documented_shapes(trees: Trees) -> Measure:
    """Public functions and methods that take or give tensors, and whose docstring gives their shapes."""
    found, wrong = 0, []
    for path, tree in trees.items():
        for owner, function in public_functions(tree):
            if not of_tensors(function):
                continue
            found += 1
            if not SHAPE.search(ast.get_docstring(function) or ""):
                wrong.append(f"{path}: {owner}{function.name}")
    return Measure("functions of tensors with shapes", found - len(wrong), found, least=0.95, where=tuple(wrong))


def many_parameters(trees: Trees) -> Measure:
    """Functions with more than six parameters, but for interfaces that others fix: Hugging Face's and autograd's."""
    counted, wrong = 0, []
    for path, tree in trees.items():
        if path.parts[:2] == ("nld_train", "hf"):
            continue
        fixed = {id(node) for node in chain.from_iterable(map(ast.walk, autograd_functions(tree)))}
        for function in (node for node in ast.walk(tree) if isinstance(node, Function) and id(node) not in fixed):
            given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            counted += 1
            if len([entry for entry in given if entry.arg not in ("self", "cls")]) > MOST_PARAMETERS:
                wrong.append(f"{path}: {function.name}")
    return Measure(
        f"functions with over {MOST_PARAMETERS} parameters", len(wrong), counted, most=0.01, where=tuple(wrong)
    )


def import_cycles(trees: Trees) -> Measure:
    """Files that import each other, directly or around corners, imports inside functions included."""
    graph = {module_name(path): set(imported_modules(path, tree, trees)) for path, tree in trees.items()}
    reached = {name: reachable(name, graph) for name in graph}
    wrong = tuple(sorted(name for name in graph if name in reached[name]))
    return Measure("files in import cycles", len(wrong), len(graph), most=0.0, where=wrong)


def arrows_up(trees: Trees, order: list[str]) -> Measure:
    """Imports of a room that stands later in the order of rooms."""
    counted, wrong = 0, []
    for path, tree in trees.items():
        if path.parts[0] != "nld_train" or path.name == "__init__.py":
            continue
        for module in imported_modules(path, tree, trees):
            if module.startswith("nld_train."):
                counted += 1
                here, there = Path(path.parts[1]).stem, module.split(".")[1]
                if order.index(there) > order.index(here):
                    wrong.append(f"{path} -> {module}")
    return Measure("imports against the order of rooms", len(wrong), counted, most=0.0, where=tuple(wrong))


def readme_lines() -> Measure:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return Measure("README, of 120 lines", len(lines), 120, most=1.0)


def public_definitions(trees: Trees) -> Iterator[tuple[Path, Function | ast.ClassDef]]:
    """Functions and classes at the top level of a file, but _private ones."""
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield path, node


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """(owner with a dot or "", function): public functions, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield "", node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = (method for method in node.body if isinstance(method, Function))
            yield from ((f"{node.name}.", method) for method in methods if not method.name.startswith("_"))


def of_tensors(function: Function) -> bool:
    given = function.args
    annotations = [entry.annotation for entry in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    texts = [ast.unparse(entry) for entry in (*annotations, function.returns) if entry is not None]
    return any(re.search(r"\bTensor\b", text) for text in texts)


def autograd_functions(tree: ast.Module) -> list[ast.ClassDef]:
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return [node for node in classes if any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)]


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, tree: ast.Module, trees: Trees) -> Iterator[str]:
    """The files of ours that a file imports, by module name."""
    known = {module_name(other) for other in trees}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            package = list(path.parts[: -node.level]) if node.level else []
            origin = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{origin}.{alias.name}"
                if inside in known or origin in known:
                    yield inside if inside in known else origin


def reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    """What `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def all_measures(order: list[str]) -> list[Measure]:
    trees = read_trees()
    counted = [count(trees) for count in (one_word_names, shared_names, documented_shapes, many_parameters)]
    return [*counted, import_cycles(trees), arrows_up(trees, order), readme_lines()]


def function_lengths(trees: Trees) -> tuple[int, int, int]:
    """Lines of functions: half of them, nine in ten, and all are at most so long."""
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = [node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno is not None]
    tenths = quantiles(lengths, n=10)
    return round(tenths[4]), round(tenths[8]), max(lengths)


def main() -> None:
    from tests.house.test_imports import ORDER

    for measure in all_measures(ORDER):
        allowed = f"at most {measure.most:.0%}" if measure.most is not None else f"at least {measure.least:.0%}"
        mark = "" if measure.holds else "   <- not held"
        print(f"{measure.name:<42}{measure.count:>5} of {measure.total:>5}  {measure.share:>6.1%}  {allowed}{mark}")
        for line in measure.where if not measure.holds else ():
            print(f"    {line}")
    print("function lines, median / 9 in 10 / longest: {} / {} / {}".format(*function_lengths(read_trees())))


if __name__ == "__main__":
    main()

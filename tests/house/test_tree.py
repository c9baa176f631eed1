"""What lies where, and what no committed file may name [design section 2]."""

import re
from pathlib import Path

from nld_train.recipe import recipe_names

FOLDERS = {"nld_train", "recipes", "data_prep", "slurm", "tests", "examples", "benchmarks", "docs", "out", ".ci"}
# Test folders that mirror no room: flow: the whole chain; distributed: gloo ranks; parity: against other code.
OWN_TESTS = {"flow", "distributed", "parity", "house", "fuzz"}
# Written so that this file does not contain what it looks for.
FORBIDDEN = {
    "a package registry's host": re.compile(
        r"pypi\.(?:org|nvidia)|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs|anaconda\.org"
    ),
    "an absolute home path": re.compile(r"(?<![\w.~}-])/(?:root|home/\w+|Users/\w+)(?![\w-])"),
    "a path of one machine": re.compile(r"(?<![\w.~}-])/wor[k](?![\w-])"),
}
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
CODE_SPAN = re.compile(r"`([^`\s]+)`")
MADE = {"slurm/site.env", "recipes/x.py", "benchmarks/results/"}  # from the example beside it; by benchmarks/gpu.sh


def mirrored(folder: str, root: Path) -> bool:
    return folder in OWN_TESTS or (root / "nld_train" / folder).is_dir() or folder in FOLDERS - {"tests", "out"}


def test_the_top_folders_are_the_fixed_ones(committed) -> None:
    found = {path.parts[0] for path in committed if len(path.parts) > 1}
    assert found <= FOLDERS, f"move it into one of {sorted(FOLDERS)}: {sorted(found - FOLDERS)}"


def test_no_output_is_committed(committed) -> None:
    wrong = [str(path) for path in committed if path.parts[0] == "out"]
    assert not wrong, f"out/ holds results of runs and is ignored by git: {wrong[:5]}"


def test_no_file_names_a_machine_or_a_registry(committed, root) -> None:
    wrong = [
        f"{path}:{number} names {what}: {line.strip()[:80]}"
        for path in committed
        for number, line in enumerate((root / path).read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line)
    ]
    assert not wrong, f"write it relative, or take it from an option or a variable: {wrong}"


def test_the_patterns_find_what_they_forbid() -> None:
    samples = {
        "a package registry's host": ["https://py" + "pi.org/simple", "files.python" + "hosted.org"],
        "an absolute home path": ["cd /ro" + "ot/x", "'/ho" + "me/ann/x'", "/Us" + "ers/ann"],
        "a path of one machine": ["/wo" + "rk/main", '"/wo' + 'rk"'],
    }
    for what, texts in samples.items():
        assert all(FORBIDDEN[what].search(text) for text in texts), what
    harmless = ["out/work", "~/work", "net/root", "/workers", "${HOME}/work"]
    assert not any(pattern.search(text) for pattern in FORBIDDEN.values() for text in harmless)


def test_the_lock_holds_no_download_address(root) -> None:
    wrong = [line for line in (root / "requirements.lock").read_text().splitlines() if "://" in line]
    assert not wrong, f"write the lock with `uv export --no-emit-project --no-header`, without addresses: {wrong[:3]}"


def pages(root: Path) -> list[Path]:
    """What people read: the README, CONTRIBUTING and docs/."""
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        root / "benchmarks" / "README.md",
        *sorted((root / "docs").glob("*.md")),
    ]


def test_the_paths_that_pages_name_exist(root) -> None:
    wrong = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        links = [a or b for a, b in LINK.findall(text)]
        linked = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
        wrong += [f"{page.name}: {path}" for path in linked if not (page.parent / path).exists()]
        in_tree = FOLDERS - {"out"}  # out/ is made by runs
        spans = [span for span in CODE_SPAN.findall(text) if not re.search(r"[*{}<>]", span)]
        spans = [span for span in spans if len(Path(span).parts) > 1 and Path(span).parts[0] in in_tree]
        wrong += [f"{page.name}: {span}" for span in spans if not (root / span).exists() and span not in MADE]
    assert not wrong, f"correct or remove these paths: {wrong}"


def test_the_readme_names_every_recipe(root) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    wrong = [name for name in recipe_names() if not re.search(rf"\b{name}\b", text)]
    assert not wrong, f"README.md lists the recipes: add {wrong}"


def test_every_test_folder_mirrors_a_room(committed, root) -> None:
    folders = {path.parts[1] for path in committed if path.parts[0] == "tests" and len(path.parts) > 2}
    wrong = sorted(folder for folder in folders if not mirrored(folder, root))
    assert not wrong, f"name test folders after what they test, or add to OWN_TESTS with its purpose: {wrong}"


def test_every_room_has_tests(committed) -> None:
    rooms = {path.parts[1] for path in committed if path.parts[0] == "nld_train" and len(path.parts) > 2}
    tested = {path.parts[1] for path in committed if path.parts[0] == "tests" and path.name.startswith("test_")}
    assert rooms <= tested, f"write tests/<room>/test_<file>.py for {sorted(rooms - tested)}"

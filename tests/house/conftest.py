"""The committed tree, read once: what the house's rules are checked on."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("nld_train", "recipes", "data_prep")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def committed() -> list[Path]:
    """Files in git, and new ones that git does not ignore; relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: git says which files are the project's")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(Path(name) for name in names if name and (ROOT / name).is_file())


@pytest.fixture(scope="session")
def trees(committed: list[Path]) -> dict[Path, ast.Module]:
    """The syntax tree of every file of nld_train, recipes and data_prep."""
    files = [path for path in committed if path.suffix == ".py" and path.parts[0] in CODE]
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in files}

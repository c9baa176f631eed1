"""A site file as somebody would fill it in."""

from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = {
    "NLD_ACCOUNT": "team",
    "NLD_PARTITION": "gpu",
    "NLD_TIME": "4:00:00",
    "NLD_GPUS_PER_NODE": "8",
    "NLD_COMMAND": ".venv/bin/nld",
}


@pytest.fixture
def site_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a site file; names given replace those of a good one, None leaves a name out."""
    (tmp_path / "checkout" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / "bin" / "nld").touch()

    def write(**changes: str | None) -> Path:
        values = {**GOOD, "NLD_FOLDER": str(tmp_path / "checkout"), **changes}
        lines = [f"{name}={value}" for name, value in values.items() if value is not None]
        path = tmp_path / "site.env"
        path.write_text("# a comment\n\n" + "\n".join(lines) + "\n")
        return path

    return write

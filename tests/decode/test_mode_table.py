"""The table of decoding modes: every entry can be loaded, and names the forwards that it counts."""

import re
from pathlib import Path

import pytest

from nld_train.decode import ar
from nld_train.decode.modes import MODES
from nld_train.decode.result import NFE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MODES)
def test_every_entry_names_a_function(name: str) -> None:
    function = MODES[name].load_function()
    assert function.__name__ == MODES[name].function.partition(".")[2]  # type: ignore[attr-defined]
    assert (function is ar.generate_ar) == (name == "ar")


def test_forwards_are_called_as_the_mode_calls_them() -> None:
    assert MODES["self-spec"].forwards_text(NFE(1, 9, 9)) == "prefill 1, draft 9, verify 9"
    assert MODES["ar"].forwards_text(NFE(1, 0, 7)) == "prefill 1, decode 7"
    with pytest.raises(AssertionError, match="no name"):
        MODES["ar"].forwards_text(NFE(1, 2, 7))


def test_the_docs_list_every_mode() -> None:
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE)
    assert set(MODES) <= set(rows)

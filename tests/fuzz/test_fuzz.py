"""Bad input is refused in one line, or does no harm: seeded cases over every reader of the product."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.drive import Ending, judge_case
from tests.fuzz.readers import READERS

ROOT = Path(__file__).resolve().parents[2]
PLAIN, GUARDED = (
    next(reader for reader in READERS if reader.files and reader.guarded is kind) for kind in (False, True)
)
GOOD = Ending(0, "text\n", "", (b"made",))


def fuzzed(seed: int, cases: int) -> None:
    words = ["-m", "tests.fuzz.drive", "--seed", str(seed), "--cases", str(cases)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.slow
def test_no_damage_ends_in_a_traceback_a_hang_or_silence() -> None:
    fuzzed(seed=1, cases=200)


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_none_of_two_thousand_does(seed) -> None:
    fuzzed(seed, cases=500)


@pytest.mark.parametrize(
    ("reader", "damage", "end", "kind"),
    [
        (PLAIN, "flip_bits", Ending(2, "", "nld: got; allowed: this; do: that\n", ()), "refused"),
        (PLAIN, "flip_bits", Ending(2, "", "usage: nld\nnld: error: no\n", ()), "refused"),
        (PLAIN, "flip_bits", Ending(2, "", "nld: two\nnld: lines\n", ()), "traceback"),
        (PLAIN, "flip_bits", Ending(2, "", "nld: one line\nand more\n", ()), "traceback"),
        (PLAIN, "flip_bits", Ending(1, "", "Traceback (most recent call last)\n", ()), "traceback"),
        (PLAIN, "flip_bits", Ending(-11, "", "", ()), "traceback"),
        (PLAIN, "flip_bits", Ending(None, "", "", ()), "hang"),
        (PLAIN, "flip_bits", GOOD, "harmless"),
        (PLAIN, "flip_bits", Ending(0, "other\n", "", (b"made",)), "harmless"),
        (PLAIN, "foreign_bytes", Ending(0, "other\n", "", (b"made",)), "silent"),
        (PLAIN, "foreign_bytes", Ending(0, "other\n", "a word\n", (b"made",)), "harmless"),
        (GUARDED, "flip_bits", Ending(0, "text\n", "", (b"other",)), "silent"),
        (GUARDED, "flip_bits", GOOD, "harmless"),
    ],
)
def test_a_case_is_judged_by_what_it_says_and_makes(reader, damage, end, kind) -> None:
    assert judge_case(reader, reader.files[-1], damage, end, GOOD) == kind

"""The 8B's own width and vocabulary, with two of its layers: out, verified, and back in, every bit the same.

`pytest -m long tests/convert/test_wide_export.py -s` prints how long a plain copy and the conversions take.
"""

import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.weight_table import NLD, weight_mappings
from nld_train.model_sizes import NLD_8B
from tests.convert.conftest import random_output
from tests.distributed.ranks import on, small_run

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
LAYERS = 2


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    text: str
    wall: float  # seconds
    cpu: float


@pytest.fixture(scope="module")
def wide(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with random weights in bfloat16: 1.5 billion parameters."""
    run = small_run("run", tmp_path_factory.mktemp("wide"), alpha=0.3, init=None, parallel=on(1))
    run = replace(run, model=replace(NLD_8B, layers=LAYERS))
    run = replace(run, data=replace(run.data, tokenizer=str(prepared / "tokenizer")))
    # As wide as training begins. Ten times as wide, attention at this width picks single keys, and rounding to float32
    # of the angles at positions around 16,384 moves logits by 0.3 %.
    return random_output(run, torch.bfloat16, spread=0.02)


def taken(words: list[str]) -> Taken:
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "nld_train.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(done.stdout + done.stderr, time.perf_counter() - wall, cpu)


def test_the_8b_s_width_goes_out_and_comes_back_bit_for_bit(wide: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    shutil.copytree(wide, tmp_path / "copy")
    copied = time.perf_counter() - start
    out = taken(["convert", "export", str(wide), "--to", str(tmp_path / "hf")])
    assert out.text.count("every bit equal") == 2
    assert "logits, diffusion" in out.text and "8,192 of 131,072 ids" in out.text
    back = taken(["convert", "import", str(tmp_path / "hf"), "--to", str(tmp_path / "back")])
    first, second = open_checkpoint_source(wide), open_checkpoint_source(tmp_path / "back")
    for unit in weight_mappings(first.model, NLD):
        assert torch.equal(first.weights.read(unit, torch.bfloat16), second.weights.read(unit, torch.bfloat16)), unit
    for name, one in (("export, verified", out), ("import, verified", back)):
        share = f"{one.wall / copied:.1f} times a copy ({copied:.1f} s)"
        print(f"{name}: {one.wall:.1f} s, {one.cpu:.1f} CPU s, {share}")

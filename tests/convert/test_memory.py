"""Export and import hold one piece of the model at a time, measured on a scaled-down 8B in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nld_train.config import ModelConfig
from nld_train.convert.weight_table import EMBEDDING, NLD, parameter_count, weight_mappings
from nld_train.model_sizes import NLD_8B

pytestmark = pytest.mark.slow

# The 8B's proportions at a quarter of its width: 176M parameters.
SCALED = ModelConfig(layers=8, hidden=1024, ffn=3584, heads=8, kv_heads=2, head_dim=128, vocab_size=32_768)
STAGES = 4
ROOT = Path(__file__).parents[2]


def first_stage(model: ModelConfig, stages: int) -> int:
    """Parameters of the pipeline stage that has the embedding."""
    table = weight_mappings(model, NLD)
    layer = sum(unit.shape[0] * (unit.shape[1:] or (1,))[0] for unit in table if unit.layer == 0)
    embedding = next(unit for unit in table if unit.name == EMBEDDING)
    return embedding.shape[0] * embedding.shape[1] + layer * model.layers // stages


@pytest.mark.parametrize("direction", ["export", "import"])
def test_memory_is_bounded_by_a_stage_shard(tmp_path: Path, direction: str) -> None:
    command = [sys.executable, "-m", "tests.convert.measure_memory", direction, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    grown = json.loads(done.stdout.splitlines()[-1])["grown"]
    whole, shard = 2 * parameter_count(SCALED), 2 * first_stage(SCALED, STAGES)  # bytes in bfloat16
    assert grown < 1.5 * shard < whole, f"{grown / 1e6:.0f} MB for a stage of {shard / 1e6:.0f} MB"


def test_the_8b_stays_within_1_5_stage_shards_by_arithmetic() -> None:
    """The largest thing held: the embedding as one rank stored it, and its copy."""
    vocabulary = 2 * NLD_8B.vocab_size * NLD_8B.hidden  # bytes in bfloat16
    for stages in (2, 4, 8):
        assert 2 * vocabulary < 1.5 * 2 * first_stage(NLD_8B, stages)

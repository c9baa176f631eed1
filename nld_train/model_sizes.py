"""The sizes of the published family, and a tiny one that trains on two CPU cores."""

from typing import NamedTuple

from nld_train.config import ModelConfig, RopeConfig

# 1.3M parameters: a step on two CPU cores takes a third of the time that 256 wide layers take, and the demo's text is
# learned as well per step. The rotary numbers are scaled down with the rows: a row of 256 goes past
# original_max_position, so that the query scale, which the large sizes show only beyond 16,384 positions, is at work in
# every test and demo.
TINY = ModelConfig(
    layers=4,
    hidden=128,
    ffn=384,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocab_size=2048,
    rope=RopeConfig(theta=1e4, factor=8.0, original_max_position=128),
)

NLD_3B = ModelConfig(layers=26, hidden=3072, ffn=9216)
NLD_8B = ModelConfig(layers=34, hidden=4096, ffn=14_336)
NLD_14B = ModelConfig(layers=40, hidden=5120, ffn=16_384, rope=RopeConfig(theta=1e9))


class SizeLayout(NamedTuple):
    """A row of a recipe's table: one size of the family, how it is cut over the GPUs, and the reason.

    Figures in the reason are those of `nld train RECIPE --dry-run`: GB of 1e9 bytes on the fullest of the GPUs.
    """

    model: ModelConfig
    tensor: int  # GPUs of one node that share every layer; above 1 with sequence parallelism
    micro_batch: int  # rows per forward on one data rank
    reason: str

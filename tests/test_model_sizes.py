import pytest

from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B, TINY
from nld_train.plan.parameters import model_parameters


@pytest.mark.parametrize(
    ("model", "shape", "theta"),
    [(NLD_3B, (26, 3072, 9216), 1e6), (NLD_8B, (34, 4096, 14_336), 1e6), (NLD_14B, (40, 5120, 16_384), 1e9)],
)
def test_the_shapes_are_the_published_ones(model, shape, theta) -> None:
    assert (model.layers, model.hidden, model.ffn) == shape
    assert (model.heads, model.kv_heads, model.head_dim, model.vocab_size, model.norm_eps) == (
        32,
        8,
        128,
        131_072,
        1e-5,
    )
    rope = model.rope
    assert (rope.theta, rope.factor, rope.original_max_position, rope.max_position) == (theta, 16, 16_384, 262_144)
    assert (rope.beta_fast, rope.beta_slow, rope.mscale, rope.mscale_all_dim) == (32, 1, 1, 1)
    assert rope.query_scale_beta == 0.1


def test_tiny_has_about_1_3_million_parameters_and_all_the_parts() -> None:
    assert model_parameters(TINY).total == pytest.approx(1.31e6, rel=0.01)
    assert TINY.vocab_size == 2048
    assert TINY.heads > TINY.kv_heads > 1  # grouped, and cut by tensor parallelism
    assert TINY.layers % 4 == 0  # pipeline 2 with two chunks
    assert TINY.rope.original_max_position < 256 <= TINY.rope.max_position

import math

import torch

from nld_train.attention.reference import attend_dense, attend_reference
from nld_train.dual_stream.row_layout import RowLayout


def test_attention_of_one_query_at_a_time(case):
    """Computed pair by pair with plain Python numbers."""
    layout = RowLayout(3, 2, True)
    c = case(layout, heads=(4, 2), dim=2)
    visible = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    visible |= torch.eye(6, dtype=torch.bool)
    output = attend_dense(c.query, c.key, c.value, visible, 0.7)
    for head in range(4):
        for place in range(6):
            q = c.query[1, head, place].tolist()
            seen = [j for j in range(6) if visible[place, j]]
            keys = [c.key[1, head // 2, j].tolist() for j in seen]
            weights = [math.exp(0.7 * (q[0] * k[0] + q[1] * k[1])) for k in keys]
            values = c.value[1, head // 2, seen]
            expected = (torch.tensor(weights, dtype=torch.float64)[:, None] * values).sum(0) / sum(weights)
            torch.testing.assert_close(output[1, head, place], expected, rtol=1e-12, atol=1e-12)


def test_a_table_per_row_gives_each_row_its_own(case):
    c = case(RowLayout(4, 2, True))
    tables = torch.stack([torch.eye(8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)])
    both = attend_dense(c.query, c.key, c.value, tables, 0.5)
    for row in range(2):
        alone = attend_dense(c.query[row : row + 1], c.key[row : row + 1], c.value[row : row + 1], tables[row], 0.5)
        torch.testing.assert_close(both[row : row + 1], alone)
    torch.testing.assert_close(both[0], c.value[0].repeat_interleave(2, 0))  # each place sees itself alone


def test_half_precision_is_computed_in_float32_and_float64_stays(case):
    c = case(RowLayout(4, 2, True))
    exact = attend_reference(c.query, c.key, c.value, c.spec, 0.5)
    assert exact.dtype == torch.float64
    half = [part.bfloat16() for part in (c.query, c.key, c.value)]
    output = attend_reference(*half, c.spec, 0.5)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, attend_reference(*(part.float() for part in half), c.spec, 0.5).bfloat16())

import pytest
import torch

from nld_train import row_arithmetic
from nld_train.bench.head_loss import HeadShape, bench_loss, chunked_head_nll, draw_head_inputs, plain_head_nll
from nld_train.bench.measure import Effort

CPU = torch.device("cpu")


def test_both_give_the_same_loss_and_gradients() -> None:
    given = draw_head_inputs(HeadShape(21, 300, 16), torch.float64, CPU, torch.Generator().manual_seed(1))
    ours, theirs = chunked_head_nll(given), plain_head_nll(given)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(given.gradients(ours), given.gradients(theirs), strict=True):
        torch.testing.assert_close(got, expected)


def test_the_memory_is_that_of_chunks_and_not_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_arithmetic, "CHUNK_LOGITS", 128 * 256)
    shape = HeadShape(128, 8192, 16)
    found = bench_loss(shape, torch.float32, Effort(1, 1, budget=60), CPU)
    all_logits = shape.rows * shape.vocabulary * 4
    everything, chunks, eager = (one["peak"] for one in found.figures["results"].values())
    assert everything > 2 * all_logits
    assert chunks < everything / 8
    gradients = shape.hidden * (shape.vocabulary + shape.rows) * 4
    assert eager - gradients < 0.4 * (chunks - gradients), "one chunk is alive, in place of four"
    assert f"1/{everything / chunks:.1f}" in found.rows[1]

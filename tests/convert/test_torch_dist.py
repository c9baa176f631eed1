"""Our reading and writing of torch_dist checkpoints against torch's own."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp

from nld_train.convert.torch_dist import StoredWeights, TensorRange, write_torch_dist
from nld_train.convert.weight_table import EMBEDDING, MLP_OUT, WeightMapping
from nld_train.errors import UserError

ROWS = WeightMapping(EMBEDDING, None, (5, 3), ())
LAYER = WeightMapping(MLP_OUT, 1, (2, 3), ())
TABLE, STACK = torch.arange(18.0).view(6, 3), torch.arange(12.0).view(2, 2, 3) + 100


@pytest.fixture
def folder(tmp_path):
    """A vocabulary tensor in two pieces with a row of padding, a stacked one by layers and columns, and an object."""
    pieces = [
        TensorRange(EMBEDDING, (6, 3), (0, 0), (2, 3), torch.float32, lambda: TABLE[:2]),
        TensorRange(EMBEDDING, (6, 3), (2, 0), (4, 3), torch.float32, lambda: TABLE[2:]),
        *[
            TensorRange(
                MLP_OUT, (2, 2, 3), (layer, 0, first), (1, 2, last - first), torch.float32,
                lambda layer=layer, first=first, last=last: STACK[layer, :, first:last],
            )
            for layer in (0, 1)
            for first, last in ((0, 1), (1, 3))
        ],
    ]  # fmt: skip
    write_torch_dist(tmp_path / "x", pieces, {"note/shard_0_1": {"a": 1}})
    return tmp_path / "x"


def test_torch_reads_what_we_write(folder) -> None:
    found = {EMBEDDING: torch.empty(6, 3), MLP_OUT: torch.empty(2, 2, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=folder, no_dist=True)
    assert torch.equal(found[EMBEDDING], TABLE)
    assert torch.equal(found[MLP_OUT], STACK)


def test_ranges_are_put_together_from_their_pieces(folder) -> None:
    weights = StoredWeights(folder)
    assert weights.shapes == {EMBEDDING: (6, 3), MLP_OUT: (2, 2, 3)}
    assert weights.dtypes == {torch.float32}
    assert torch.equal(weights.read(LAYER, torch.float32), STACK[1])
    assert torch.equal(weights.read(ROWS, torch.float32, 1, 4), TABLE[1:4])
    assert torch.equal(weights.read(LAYER, torch.bfloat16), STACK[1].bfloat16())


def test_padding_is_never_read(folder) -> None:
    weights = StoredWeights(folder)
    assert weights.row_ranges(ROWS) == [(0, 2), (2, 5)]
    assert torch.equal(weights.read(ROWS, torch.float32), TABLE[:5])


def test_we_read_what_torch_writes(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({EMBEDDING: TABLE, "optimizer.state": TABLE}, checkpoint_id=tmp_path / "x", no_dist=True)
    weights = StoredWeights(tmp_path / "x")
    assert set(weights.shapes) == {EMBEDDING}
    assert torch.equal(weights.read(ROWS, torch.float32), TABLE[:5])


def test_a_damaged_checkpoint_is_one_line(folder) -> None:
    weights = StoredWeights(folder)
    for path in folder.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="embedding.word_embeddings.weight cannot be read") as caught:
        weights.read(ROWS, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_folder_without_metadata_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="no .metadata in"):
        StoredWeights(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=".metadata cannot be read as data"):
        StoredWeights(tmp_path)

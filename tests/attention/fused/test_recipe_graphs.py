"""cuDNN's own library, asked without a GPU for a graph of every piece of every recipe for GPUs, at its real shape."""

import pytest
import torch

from nld_train.attention.fused.decomposition import AttentionPiece, clean_pieces, shifted_pieces, window_pieces
from nld_train.config import RunConfig
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.recipe import load_recipe, recipe_names
from tests.attention import cudnn_graph
from tests.attention.fused.test_te import diagonals

ON_GPUS = [name for name in recipe_names() if name.startswith("nld_") and not name.endswith("_sampler")]
DOCUMENTS = (0.4, 0.25, 0.2, 0.1, 0.05)  # shares of a packed row


def pieces_of(run: RunConfig) -> list[AttentionPiece]:
    """The pieces of a row of one rank."""
    length, diffusion = run.data.sequence_length, run.diffusion
    layout = RowLayout(length, diffusion.block_size, diffusion.dual)
    documents = None
    if diffusion.document_mask:
        lengths = [int(share * length) for share in DOCUMENTS[1:]]
        documents = ((length - sum(lengths), *lengths),)
    spec, host = MaskSpec(layout, documents=documents), torch.device("cpu")
    noisy = [*shifted_pieces(spec, host), *window_pieces(spec, host)] if diffusion.dual else []
    return [*clean_pieces(spec), *noisy]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ON_GPUS)
def test_cudnn_takes_every_piece_of_a_recipe(name: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_recipe(name)
    rows = 1 if run.diffusion.document_mask else run.train.micro_batch  # the heads of a micro-batch lie side by side
    for constant, heads in (("HEADS", run.model.heads), ("KEY_HEADS", run.model.kv_heads)):
        monkeypatch.setattr(cudnn_graph, constant, heads // run.parallel.tensor * rows)
    monkeypatch.setattr(cudnn_graph, "DIM", run.model.head_dim)
    pieces = pieces_of(run)
    assert len(pieces) >= (3 if run.diffusion.dual else 1)
    for piece in pieces:
        queries, keys = piece.segments.queries, piece.segments.keys
        tokens = None if piece.segments.one_fixed_shape else (sum(queries), sum(keys))
        assert tokens is None or run.diffusion.document_mask
        graph = cudnn_graph.Graph(len(queries), max(queries), max(keys), tokens=tokens)
        graph.build(backward, **diagonals(piece.window, max(queries)))

"""The joint loss of rows with images against a slow transcription: no doubled row, no packing, one block at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nld_train.attention.sdpa import attend_sdpa
from nld_train.config import DiffusionConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions
from nld_train.loss.objective import objective_value
from nld_train.loss.terms import loss_terms
from nld_train.noise.corrupt import corrupt_row
from nld_train.types import Batch, LossTerms, NoisyRow, Row
from tests.image_rows import VISION, draw_rows, make_row

VOCABULARY, WIDTH, ALPHA, LENGTH, TEXT, BLOCK = 40, 16, 0.3, 56, 28, 4
CONFIG = DiffusionConfig(block_size=BLOCK, mask_token_id=1, document_mask=True, alpha=ALPHA)


class PictureNet(nn.Module):
    """Two layers of attention over text and cells of images, with positions; float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
        self.places = nn.Embedding(LENGTH, WIDTH, dtype=torch.float64)
        self.tower = nn.Linear(12, WIDTH, dtype=torch.float64)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH, dtype=torch.float64) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)

    def features(self, pixels: Tensor) -> Tensor:
        """pixels [3, H, W] -> [cells, E]."""
        cells = pixels.double().unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4)
        return self.tower(cells.flatten(2).flatten(0, 1))

    def hidden(self, x: Tensor, attend) -> Tensor:
        """x [B, S, E] with positions; attend: query, key, value [B, H, S, D] -> [B, H, S, D]."""
        for qkv in self.qkv:
            heads = qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            x = x + torch.tanh(attend(*heads).transpose(1, 2).flatten(2))
        return x

    def batch_terms(self, batch: Batch) -> LossTerms:
        """The terms of a micro-batch, as the model computes them."""
        layout = RowLayout(LENGTH, BLOCK, True, text_length=batch.input_ids.shape[1] - LENGTH)
        spec = MaskSpec.from_documents(layout, batch.documents, clean_only=batch.clean_only)
        x = self.embedding(batch.input_ids)
        if batch.images is not None:
            images = zip(batch.images.pixels, batch.images.sizes.tolist(), strict=True)
            cells = torch.cat([self.features(pixels[:, :height, :width]) for pixels, (height, width) in images])
            x = x.flatten(0, 1).index_put((batch.images.positions,), cells).view_as(x)
        x = x + self.places(rotary_positions(layout, batch.documents, batch.clean_only))
        logits = self.head(self.hidden(x, lambda q, k, v: attend_sdpa(q, k, v, spec, 0.5))).flatten(0, 1)
        ar = cross_entropy(logits[batch.ar_positions], batch.ar_targets, reduction="none")
        diffusion = cross_entropy(logits[batch.diffusion_positions], batch.diffusion_targets, reduction="none")
        return loss_terms(ar, diffusion, batch)


def document_inputs(net: PictureNet, row: Row, start: int, end: int) -> Tensor:
    """Embeddings [n, E] of the row's tokens start..end-1, cells of images in their places."""
    x = net.embedding(row.tokens[start:end])
    for image in row.images:
        if start <= image.start < end:
            cells, columns = net.features(image.pixels), image.pixels.shape[2] // 2
            for number, cell in enumerate(cells):
                place = image.start - start + number // columns * (columns + 1) + number % columns
                x = torch.cat([x[:place], cell[None], x[place + 1 :]])
    return x


def dense(mask: Tensor):
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.transpose(-1, -2) * 0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ value

    return attend


def transcribed(net: PictureNet, rows: list[NoisyRow]) -> Tensor:
    """(AR + alpha * diffusion) / N of eq. 5, term by term."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for noisy in rows:
        row = noisy.row
        count += int(row.supervised[1:].sum())
        assert row.documents is not None and row.clean_only is not None
        for document in row.documents.unique().tolist():
            tokens = (row.documents == document).nonzero().flatten().tolist()
            start, end = tokens[0], tokens[-1] + 1
            x = document_inputs(net, row, start, end) + net.places(torch.arange(end - start))
            causal = torch.ones(end - start, end - start).tril().bool()
            logits = net.head(net.hidden(x[None], dense(causal))[0])
            for token in range(start, end - 1):
                if row.supervised[token + 1]:
                    total = total + cross_entropy(logits[token - start], row.tokens[token + 1])
            total = total + ALPHA * diffusion_part(net, noisy, start, end)
    return total / count


def diffusion_part(net: PictureNet, noisy: NoisyRow, start: int, end: int) -> Tensor:
    """The weighted diffusion terms of one document: each block behind the clean text and images before it."""
    row, total, first = noisy.row, torch.zeros((), dtype=torch.float64), start
    assert row.clean_only is not None
    while first < end:
        if row.clean_only[first]:
            first += 1
            continue
        last = first
        while last < end and last - first < BLOCK and not row.clean_only[last]:
            last += 1
        before, size = first - start, last - first
        x = torch.cat([document_inputs(net, row, start, first), net.embedding(noisy.noisy[first:last])])
        x = x + net.places(torch.arange(before + size))
        mask = torch.ones(before + size, before + size).tril().bool()
        mask[before:] = True
        logits = net.head(net.hidden(x[None], dense(mask))[0])
        for token in range(first, last):
            if noisy.masked[token]:
                total = total + cross_entropy(logits[token - start], row.tokens[token]) / noisy.p[token].double()
        first = last
    return total


@pytest.mark.parametrize("seed", range(4))
def test_joint_loss_and_gradients_are_the_slow_transcription(seed: int) -> None:
    net, drawn = PictureNet(), draw_rows(seed, LENGTH, TEXT, BLOCK, count=3)
    noisy = [corrupt_row(row, CONFIG, "train", 3) for row in drawn.rows]
    assert sum(len(row.images) for row in drawn.rows) >= 3
    parts = [collate_rows(rows, CONFIG, text_length=TEXT, vision=VISION) for rows in (noisy[:2], noisy[2:])]
    fast = objective_value([net.batch_terms(batch) for batch in parts], ALPHA, 1.0)
    slow = transcribed(net, noisy)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=0)
    names = [name for name, _ in net.named_parameters()]
    gradients = (torch.autograd.grad(loss, list(net.parameters())) for loss in (fast, slow))
    for name, one, other in zip(names, *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9, msg=name)


def test_both_losses_reach_the_tower() -> None:
    net, drawn = PictureNet(), draw_rows(1, LENGTH, TEXT, BLOCK, count=3)
    batch = collate_rows(
        [corrupt_row(row, CONFIG, "train", 3) for row in drawn.rows], CONFIG, text_length=TEXT, vision=VISION
    )
    terms = net.batch_terms(batch)
    for part in (terms.ar_sum, terms.diffusion_sum):
        (gradient,) = torch.autograd.grad(part, [net.tower.weight], retain_graph=True)
        assert gradient.abs().max() > 1e-4


def test_a_shorter_noisy_half_changes_no_loss() -> None:
    """Of rows of text alone: padding of the noisy half has no part in it."""
    pieces = [("prompt", 0, (5, 0)), ("answer", 0, (9, 0)), ("prompt", 1, (3, 0)), ("answer", 1, (6, 0))]
    net, noisy = PictureNet(), corrupt_row(make_row(3, pieces, LENGTH, VOCABULARY), CONFIG, "train", 1)
    whole, short = (collate_rows([noisy], CONFIG, text_length=length, vision=VISION) for length in (None, TEXT))
    assert whole.input_ids.shape[1] == 2 * LENGTH and short.input_ids.shape[1] == TEXT + LENGTH
    one, other = (objective_value([net.batch_terms(batch)], ALPHA, 1.0) for batch in (whole, short))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)

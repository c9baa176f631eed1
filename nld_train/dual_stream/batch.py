"""Collation: rows with their noise become one micro-batch, with the positions and weights both losses need."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig, LossAverage
from nld_train.dual_stream.context_shard import WHOLE, ContextShard, shard_batch
from nld_train.dual_stream.image_batch import collate_images, stack_clean_only
from nld_train.dual_stream.row_layout import RowLayout, copied_tokens
from nld_train.noise.corrupt import maskable_tokens
from nld_train.row_arithmetic import PADDING_TOKEN
from nld_train.types import Batch, NoisyRow, Row
from nld_train.vision_config import VisionConfig


def collate_rows(
    rows: Sequence[NoisyRow] | Sequence[Row],
    config: DiffusionConfig,
    shard: ContextShard = WHOLE,
    text_length: int | None = None,
    vision: VisionConfig | None = None,
) -> Batch:
    """The micro-batch of rows of one length: input_ids [B, S], or [B, S/c] where `shard` is one of c context ranks.

    The rows are `NoisyRow`s where the configuration is dual, plain `Row`s where it is not. `text_length`: places of the
    noisy half, None for L; `vision`: what images are, None in a run of text.

    The AR term of position i counts iff supervised[i + 1]; the diffusion term of token i counts iff i is masked. N is
    the number of supervised tokens that are targets. With `config.document_mask` the AR term of a document's last token
    does not count: its target lies in the next document, which that token cannot know. That target is still a
    supervised token, which the diffusion term predicts, so N counts it: the two terms keep their weights. (A row says
    the documents of its first L tokens; its last target is taken to belong to the document of token L - 1.)

    Token averaging [paper eq. 5] gives the terms the weights 1 and 1/p, and the denominator N. Sequence averaging
    [eq. 4] divides both weights by the row's own N, and the denominator is the number of rows; rows with N = 0 drop out
    of both terms.
    """
    noisy = [row for row in rows if isinstance(row, NoisyRow)]
    assert len(noisy) == (len(rows) if config.dual else 0), "a dual batch is made of NoisyRows, an AR batch of Rows"
    plain = [row.row if isinstance(row, NoisyRow) else row for row in rows]
    tokens = torch.stack([row.tokens for row in plain])
    layout = RowLayout(tokens.shape[1] - 1, config.block_size, config.dual, text_length=text_length)
    documents = stack_documents(plain, config, layout.length)
    clean_only = stack_clean_only(plain, layout)
    targets = torch.stack([row.supervised for row in plain])[:, 1:]
    counts = _ar_counts(targets, documents)
    shares, denominator = _shares(targets, config.average)
    ar_rows, ar_tokens = (counts & (shares > 0)[:, None]).nonzero(as_tuple=True)
    inputs, masked, inverse_p = _noisy_half(noisy, tokens, layout, clean_only)
    diffusion_rows, diffusion_tokens = (masked & (shares > 0)[:, None]).nonzero(as_tuple=True)
    may = torch.stack([maskable_tokens(row, config) for row in plain]) & (shares > 0)[:, None]
    whole = Batch(
        input_ids=torch.cat([*inputs, tokens[:, :-1]], 1),
        documents=documents,
        ar_positions=ar_rows * layout.size + layout.clean_start + ar_tokens,
        ar_targets=tokens[:, 1:][ar_rows, ar_tokens],
        ar_weights=shares[ar_rows],
        diffusion_positions=diffusion_rows * layout.size + _noisy_places(diffusion_rows, diffusion_tokens, clean_only),
        diffusion_targets=tokens[diffusion_rows, diffusion_tokens],
        diffusion_weights=inverse_p[diffusion_rows, diffusion_tokens] * shares[diffusion_rows],
        denominator=denominator,
        maskable=may.sum().float(),
        sample_indices=torch.tensor([row.index for row in plain]),
        clean_only=clean_only,
        images=None if vision is None else collate_images(plain, layout, vision),
    )
    return shard_batch(whole, layout, shard)


def _noisy_half(
    noisy: list[NoisyRow], tokens: Tensor, layout: RowLayout, clean_only: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """A list of the noisy half's ids [B, L_text]; masks [B, L]; 1/p [B, L]. An AR batch has no ids and no masks."""
    if not noisy:
        nothing = torch.zeros(tokens[:, :-1].shape)
        return [], nothing.bool(), nothing
    masked = torch.stack([row.masked for row in noisy])
    inverse_p = 1.0 / torch.stack([row.p for row in noisy])
    ids = torch.stack([row.noisy for row in noisy])
    if clean_only is not None:
        text = (~clean_only).sum(1, keepdim=True)
        ids = ids.gather(1, copied_tokens(layout, clean_only))
        ids = torch.where(torch.arange(layout.noisy_length) < text, ids, PADDING_TOKEN)
    return [ids], masked, inverse_p


def _noisy_places(rows: Tensor, tokens: Tensor, clean_only: Tensor | None) -> Tensor:
    """Where the noisy half holds the tokens [R] of the batch's rows number `rows` [R]: [R] int64."""
    if clean_only is None:
        return tokens
    return ((~clean_only).cumsum(1) - 1)[rows, tokens]


def stack_documents(rows: Sequence[Row], config: DiffusionConfig, length: int) -> Tensor | None:
    """Document numbers [B, L] int64 of B rows of L = `length` tokens; a row without any is one document.

    Returns None where no row is packed, or where the configuration lets documents see each other.
    """
    if not config.document_mask or all(row.documents is None for row in rows):
        return None
    whole = torch.zeros(length, dtype=torch.int64)
    return torch.stack([whole if row.documents is None else row.documents for row in rows])


def _ar_counts(targets: Tensor, documents: Tensor | None) -> Tensor:
    """Which AR terms count: [B, L] bool. targets: [B, L] bool, s_{i+1}."""
    if documents is None:
        return targets
    counts = targets.clone()
    counts[:, :-1] &= documents[:, 1:] == documents[:, :-1]
    return counts


def _shares(targets: Tensor, average: LossAverage) -> tuple[Tensor, Tensor]:
    """The weight of every row, [B] float32 (0: the row drops out), and the batch's denominator, [] float32.

    `targets`: [B, L] bool, s_{i+1}.
    """
    if average == "token":
        return torch.ones(targets.shape[0]), targets.sum().float()
    counted = targets.sum(1)
    return torch.where(counted > 0, 1.0 / counted.clamp(min=1), 0.0), (counted > 0).sum().float()

"""Collation: rows with their noise become one micro-batch, with the positions and weights both losses need."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.config import DiffusionConfig, LossAverage
from nld_train.dual_stream.context_shard import WHOLE, ContextShard, shard_batch
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.noise.corrupt import maskable_tokens
from nld_train.types import Batch, NoisyRow, Row


def collate_rows(rows: Sequence[NoisyRow] | Sequence[Row], config: DiffusionConfig, cut: ContextShard = WHOLE) -> Batch:
    """A micro-batch of rows of one length: `NoisyRow`s where the configuration is dual, plain `Row`s where it is not.
    A context rank is given its `cut` of it.

    The AR term of position i counts iff supervised[i + 1]; the diffusion term of token i iff it is masked. N counts the
    AR terms. With `config.document_mask`, the target of a document's last token lies in the next document, which that
    token cannot know: it does not count. (Documents are known to token L - 1; the row's last target is taken to be of
    the same document.)

    Token averaging [paper eq. 5]: weights 1 and 1/p, denominator N. Sequence averaging [eq. 4]: both divided by the
    row's own N, denominator the number of rows; rows with N = 0 drop out of both terms.
    """
    noisy = [row for row in rows if isinstance(row, NoisyRow)]
    assert len(noisy) == (len(rows) if config.dual else 0), "a dual batch is made of NoisyRows, an AR batch of Rows"
    plain = [row.row if isinstance(row, NoisyRow) else row for row in rows]
    tokens = torch.stack([row.tokens for row in plain])
    layout = RowLayout(tokens.shape[1] - 1, config.block_size, config.dual)
    documents = stack_documents(plain, config, layout.length)
    counts = _ar_counts(torch.stack([row.supervised for row in plain]), documents)
    shares, denominator = _shares(counts, config.average)
    ar_rows, ar_places = (counts & (shares > 0)[:, None]).nonzero(as_tuple=True)
    inputs, masked, inverse_p = _noisy_half(noisy, tokens)
    diffusion_rows, diffusion_places = (masked & (shares > 0)[:, None]).nonzero(as_tuple=True)
    may = torch.stack([maskable_tokens(row, config) for row in plain]) & (shares > 0)[:, None]
    whole = Batch(
        input_ids=torch.cat([*inputs, tokens[:, :-1]], 1),
        documents=documents,
        ar_positions=ar_rows * layout.size + layout.clean_start + ar_places,
        ar_targets=tokens[:, 1:][ar_rows, ar_places],
        ar_weights=shares[ar_rows],
        diffusion_positions=diffusion_rows * layout.size + diffusion_places,
        diffusion_targets=tokens[diffusion_rows, diffusion_places],
        diffusion_weights=inverse_p[diffusion_rows, diffusion_places] * shares[diffusion_rows],
        denominator=denominator,
        maskable=may.sum().float(),
        sample_indices=torch.tensor([row.index for row in plain]),
    )
    return shard_batch(whole, layout, cut)


def _noisy_half(noisy: list[NoisyRow], tokens: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Input ids of the noisy half ([B, L], or none), masks [B, L] and 1/p [B, L]; no masks for an AR batch."""
    if not noisy:
        nothing = torch.zeros(tokens[:, :-1].shape)
        return [], nothing.bool(), nothing
    masked = torch.stack([row.masked for row in noisy])
    inverse_p = 1.0 / torch.stack([row.p for row in noisy])
    return [torch.stack([row.noisy for row in noisy])], masked, inverse_p


def stack_documents(rows: Sequence[Row], config: DiffusionConfig, length: int) -> Tensor | None:
    """[B, L], or None where nothing is packed or documents may see each other; a row without any is one document."""
    if not config.document_mask or all(row.documents is None for row in rows):
        return None
    whole = torch.zeros(length, dtype=torch.int64)
    return torch.stack([whole if row.documents is None else row.documents for row in rows])


def _ar_counts(supervised: Tensor, documents: Tensor | None) -> Tensor:
    """Which AR terms count, s_{i+1}: [B, L] bool."""
    counts = supervised[:, 1:].clone()
    if documents is not None:
        counts[:, :-1] &= documents[:, 1:] == documents[:, :-1]
    return counts


def _shares(counts: Tensor, average: LossAverage) -> tuple[Tensor, Tensor]:
    """Weight of every row [B] float32 (0: the row drops out), and the batch's denominator [] float32."""
    if average == "token":
        return torch.ones(counts.shape[0]), counts.sum().float()
    targets = counts.sum(1)
    return torch.where(targets > 0, 1.0 / targets.clamp(min=1), 0.0), (targets > 0).sum().float()

"""Chat rows on the real model: answers alone are learned, and packing changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nld_train.config import RunConfig
from nld_train.dual_stream.batch import collate_rows
from nld_train.recipe import run_to_json
from nld_train.types import Batch, NoisyRow, Row
from tests.chat_files import END_OF_TURN, conversation, write_chat_file
from tests.distributed.ranks import on, small_run, with_train
from tests.model.build import build

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("one_rank")]

LENGTH = 64
ROWS = 40
# Lengths and prompts: three or more conversations to a row, ends amid a block of 8, at least one token of padding.
SHAPES = [((13, 21, 25)[i % 3], 2 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("chat")
    write_chat_file(folder / "chat", [conversation(n, prompt=p, seed=i) for i, (n, p) in enumerate(SHAPES)])
    plain = with_train(small_run("chat", folder, alpha=0.3, init=None, parallel=on(1)), iterations=ROWS // 8)
    return replace(
        plain,
        diffusion=replace(plain.diffusion, document_mask=True),
        data=replace(plain.data, blend=(f"{folder}/chat",), chat=True),
    )


@pytest.fixture(scope="module")
def rows(run: RunConfig, one_rank: None) -> list[NoisyRow]:
    """The first training rows of the run, as the loader gets them."""
    from megatron.bridge.data.base import DatasetBuildContext

    from nld_train.train.dataset import RunRowsProvider

    provider = RunRowsProvider(
        run_json=run_to_json(run),
        seq_length=LENGTH,
        index_folder=f"{run.output}/index",
        random_seed=run.data.shuffle_seed,
    )
    train, valid, _ = provider.build_datasets(DatasetBuildContext(ROWS, 0, 0, None))
    assert len(train) == ROWS and isinstance(valid[0], NoisyRow)
    return [train[number] for number in range(ROWS)]


@pytest.fixture(scope="module")
def packed(rows: list[NoisyRow]) -> NoisyRow:
    """A row of three or more conversations with several masks, and padding."""
    return next(
        row
        for row in rows
        if row.row.documents[-1] >= 3 and not row.row.supervised[LENGTH - 1] and row.masked.sum() > 9
    )


def hidden_gradients(run: RunConfig, batch: Batch, term: str) -> tuple[Tensor, Tensor]:
    """Gradient of one term's sum with respect to the hidden states that predict, and to the embedded input: [S, E]."""
    model = build(run)
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: torch.nn.Module, _inputs: tuple, output: Tensor) -> None:
            output.retain_grad()
            seen[name] = output

        return hook

    model.decoder.register_forward_hook(keep("predicting"))
    model.embedding.register_forward_hook(keep("input"))
    nll = model(batch=batch)
    ar, diffusion = nll.split([batch.ar_targets.numel(), batch.diffusion_targets.numel()])
    ((ar * batch.ar_weights) if term == "ar" else (diffusion * batch.diffusion_weights)).sum().backward()
    return tuple(seen[name].grad[:, 0] for name in ("predicting", "input"))


def nonzero(gradient: Tensor) -> list[int]:
    return (gradient != 0).any(-1).nonzero().flatten().tolist()


def test_every_supervised_token_is_a_target_and_nothing_else_is(rows: list[NoisyRow], run: RunConfig) -> None:
    for each in rows:
        batch = collate_rows([each], run.diffusion)
        counted = each.row.supervised.nonzero().flatten()
        assert batch.ar_positions.tolist() == (LENGTH + counted - 1).tolist()
        assert batch.ar_targets.tolist() == each.row.tokens[counted].tolist()
        assert batch.denominator == counted.numel() == batch.maskable
        ends = (each.row.tokens == END_OF_TURN).nonzero().flatten()
        assert ends.numel() and set(ends.tolist()) <= set(counted.tolist()), "the end mark is a target"


def test_every_supervised_token_can_be_masked_and_nothing_else_is(rows: list[NoisyRow], run: RunConfig) -> None:
    from nld_train.noise.corrupt import corrupt_row

    row = rows[0].row
    ever = torch.zeros(LENGTH, dtype=torch.bool)
    for number in range(200):
        ever |= corrupt_row(replace(row, index=number), run.diffusion, "train", 8).masked
    assert torch.equal(ever, row.supervised[:-1])


@pytest.mark.parametrize("term", ["ar", "diffusion"])
def test_prompt_and_padding_have_exactly_zero_gradient(run: RunConfig, packed: NoisyRow, term: str) -> None:
    """No place predicts a prompt or padding token; and padding, which nobody sees, has none as an input either."""
    batch = collate_rows([packed], run.diffusion)
    predicting, inputs = hidden_gradients(run, batch, term)
    counted = packed.row.supervised.nonzero().flatten()
    if term == "ar":
        assert nonzero(predicting) == (LENGTH + counted - 1).tolist()
    else:
        assert nonzero(predicting) == packed.masked.nonzero().flatten().tolist()
        assert packed.row.supervised[:-1][packed.masked].all()
    padding = (packed.row.documents == packed.row.documents[-1]).nonzero().flatten()
    assert padding.numel() and not packed.row.supervised[padding].any()
    assert (inputs[padding] == 0).all() and (inputs[LENGTH + padding] == 0).all()
    prompt = (~packed.row.supervised[:-1] & (packed.row.documents < packed.row.documents[-1])).nonzero().flatten()
    assert (inputs[LENGTH + prompt] != 0).any(-1).all(), "a prompt is context: as an input it does have a gradient"


def test_other_padding_changes_no_bit_of_the_gradient(run: RunConfig, packed: NoisyRow) -> None:
    def gradients(padding_token: int) -> list[Tensor]:
        tokens, noisy = packed.row.tokens.clone(), packed.noisy.clone()
        padding = packed.row.documents == packed.row.documents[-1]
        tokens[:-1][padding] = noisy[padding] = padding_token
        tokens[-1] = padding_token
        model = build(run)
        batch = collate_rows([replace(packed, row=replace(packed.row, tokens=tokens), noisy=noisy)], run.diffusion)
        model(batch=batch).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for one, other in zip(gradients(0), gradients(7), strict=True):
        assert torch.equal(one, other)


def alone(packed: NoisyRow, document: int) -> NoisyRow:
    """One conversation of a packed row in a row of its own, with the noise it had there."""
    row = packed.row
    places = (row.documents == document).nonzero().flatten()
    count = places.numel()

    def moved(values: Tensor, fill: float, length: int = LENGTH) -> Tensor:
        return torch.cat([values[places], torch.full((length - count,), fill, dtype=values.dtype)])

    single = Row(
        index=row.index,
        tokens=moved(row.tokens, 0, LENGTH + 1),
        supervised=moved(row.supervised, False, LENGTH + 1),
        documents=(torch.arange(LENGTH) >= count).long(),
    )
    return NoisyRow(single, moved(packed.noisy, 0), moved(packed.masked, False), moved(packed.p, 1.0))


def test_packed_conversations_have_the_losses_they_have_alone(run: RunConfig, packed: NoisyRow) -> None:
    model, batch = build(run), collate_rows([packed], run.diffusion)
    documents = packed.row.documents
    with torch.no_grad():
        nll = model(batch=batch)
    ar, diffusion = nll.split([batch.ar_targets.numel(), batch.diffusion_targets.numel()])
    compared = 0
    for document in range(int(documents[-1])):  # the last one is padding
        single = collate_rows([alone(packed, document)], run.diffusion)
        with torch.no_grad():
            expected = model(batch=single)
        expected_ar, expected_diffusion = expected.split([single.ar_targets.numel(), single.diffusion_targets.numel()])
        here_ar = documents[batch.ar_positions - LENGTH] == document
        here_diffusion = documents[batch.diffusion_positions] == document
        for got, want in (
            ((ar * batch.ar_weights)[here_ar], expected_ar * single.ar_weights),
            ((diffusion * batch.diffusion_weights)[here_diffusion], expected_diffusion * single.diffusion_weights),
        ):
            assert got.shape == want.shape
            torch.testing.assert_close(got.sum(), want.sum(), rtol=1e-5, atol=1e-5)
            compared += want.numel()
    assert compared == nll.numel(), "every loss of the packed row belongs to a conversation"

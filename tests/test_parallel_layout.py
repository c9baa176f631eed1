"""Which layouts are refused, with which reason, and what is proposed instead."""

from dataclasses import replace

import pytest

from nld_train import parallel_layout, recipe
from nld_train.errors import UserError
from nld_train.parallel_layout import LayoutConstraints, ParallelLayout, layout_advice, layout_problem, nearest_layout

NEEDS = LayoutConstraints(
    world_size=256,
    global_batch=512,
    layers=34,
    kv_heads=8,
    ffn=14_336,
    vocab_size=131_072,
    length=4096,
    angles=16_384,
    positions=8192,
    dual=True,
    block_size=32,
    packed=False,
    whole_network=False,
)
ASKED = ParallelLayout(tensor=2, pipeline=1, virtual_pipeline=1, context=1, sequence=False, micro_batch=1)


def needs(**changes: int | bool) -> LayoutConstraints:
    return replace(NEEDS, **changes)  # type: ignore[arg-type]


def asked(**changes: int | bool) -> ParallelLayout:
    return replace(ASKED, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "choice", "reason", "instead"),
    [
        (needs(world_size=12), asked(tensor=8), "world_size=12 with tensor x pipeline x context = 8", "tensor=4"),
        (needs(), asked(tensor=16), "tensor=16 with model.kv_heads=8", "parallel.tensor=8 parallel.pipeline=2"),
        (needs(ffn=100), asked(tensor=8), "tensor=8 with model.ffn=100", "parallel.tensor=4 parallel.pipeline=2"),
        (needs(vocab_size=131_073), asked(), "model.vocab_size=131073", "parallel.tensor=1 parallel.pipeline=2"),
        (needs(), asked(tensor=1, sequence=True), "sequence=True with parallel.tensor=1", "parallel.sequence=False"),
        (needs(), asked(pipeline=4), "model.layers=34 with pipeline x virtual_pipeline = 4", "parallel.tensor=4"),
        (
            needs(layers=32),
            asked(pipeline=4, virtual_pipeline=3),
            "pipeline x virtual_pipeline = 12",
            "use parallel.virtual_pipeline=4",
        ),
        (needs(), asked(virtual_pipeline=2), "virtual_pipeline=2 with parallel.pipeline=1", "virtual_pipeline=1"),
        (
            needs(layers=32, world_size=16, global_batch=2),
            asked(pipeline=4, virtual_pipeline=2),
            "1 micro-batches a step with parallel.virtual_pipeline=2",
            "use parallel.virtual_pipeline=1",
        ),
        (needs(global_batch=510), asked(), "global_batch=510 with micro_batch x data ranks = 128", "parallel."),
        (needs(), asked(micro_batch=3), "micro_batch x data ranks = 384", "use train.micro_batch=4"),
        (needs(length=4098), asked(context=2), "a sequence_length that 2 x context = 4 divides", "context=1"),
        (needs(block_size=48), asked(context=2), "block sizes that divide the 1024 tokens of a chunk", "context=1"),
        (needs(), asked(context=128), "block sizes that divide the 16 tokens", "tensor=4 parallel.context=64"),
        (needs(angles=4097), asked(context=2), "original_max_position=4097", "parallel.context=1"),
        (
            needs(length=4, positions=4, block_size=1, dual=False, world_size=16),
            asked(tensor=8, context=2, sequence=True),
            "tensor=8 and 2 positions",
            "use parallel.",
        ),
    ],
    ids=lambda value: None if isinstance(value, LayoutConstraints | ParallelLayout) else value[:40],
)
def test_what_cannot_be_is_refused_with_the_reason_and_the_nearest(
    wanted: LayoutConstraints, choice: ParallelLayout, reason: str, instead: str
) -> None:
    found = layout_problem(wanted, choice)
    assert found is not None
    assert reason in "; ".join(found)
    assert instead in layout_advice(wanted, choice)


def test_blocks_may_straddle_the_cuts_of_packed_rows_and_of_none() -> None:
    assert layout_problem(needs(block_size=48, packed=True), asked(context=2)) is None
    assert layout_problem(needs(block_size=48, dual=False), asked(context=2)) is None


def test_a_possible_layout_is_its_own_nearest() -> None:
    for choice in (ASKED, asked(context=4, tensor=4, sequence=True), asked(pipeline=2, virtual_pipeline=17)):
        assert layout_problem(NEEDS, choice) is None
        assert nearest_layout(NEEDS, choice) == choice


def test_a_drafter_is_never_told_to_cut_layers_or_rows() -> None:
    found = nearest_layout(needs(whole_network=True), asked(tensor=16))
    assert found is not None and (found.tensor, found.pipeline, found.context) == (8, 1, 1)


@pytest.mark.parametrize("world_size", [1, 7, 12, 64, 257, 1000])
@pytest.mark.parametrize("tensor", [1, 3, 64])
def test_the_advice_is_always_possible(world_size: int, tensor: int) -> None:
    wanted, choice = needs(world_size=world_size), asked(tensor=tensor, pipeline=3, context=5, micro_batch=7)
    assert layout_problem(wanted, choice) is not None
    words = dict(word.split("=") for word in layout_advice(wanted, choice).removeprefix("use ").split())
    batch = int(words.pop("train.global_batch", wanted.global_batch))
    changes = {
        key.split(".")[1]: value == "True" if key.endswith("sequence") else int(value) for key, value in words.items()
    }
    assert layout_problem(replace(wanted, global_batch=batch), replace(choice, **changes)) is None


def test_another_global_batch_is_the_last_resort() -> None:
    assert layout_advice(needs(world_size=3, global_batch=8), asked(tensor=1)) == "use train.global_batch=9"
    assert "global_batch" not in layout_advice(needs(world_size=32, global_batch=8), asked(tensor=1))


def test_divisors() -> None:
    assert parallel_layout.divisors_of(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("name", [name for name in recipe.recipe_names() if not name.endswith("_sampler")])
def test_the_advice_can_be_typed(name: str) -> None:
    """What a refusal proposes for a recipe is accepted as overrides."""
    with pytest.raises(UserError) as refused:
        recipe.load_recipe(name, ["parallel.tensor=3"])
    words = str(refused.value).rpartition("do: use ")[2].split()
    kept = [] if any(word.startswith("parallel.tensor=") for word in words) else ["parallel.tensor=3"]
    recipe.load_recipe(name, kept + words)

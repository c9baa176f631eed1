"""Which parallel layouts can hold a model and its batch, and the nearest one to a layout that cannot. Whole numbers
alone: config.py asks, `nld train --dry-run` shows the answer."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import gcd, log2

Problem = tuple[str, str]  # what was got, what is allowed


@dataclass(frozen=True, kw_only=True)
class LayoutConstraints:
    """What a layout must be able to cut."""

    world_size: int  # ranks
    global_batch: int  # rows
    layers: int
    kv_heads: int  # the query heads are a multiple of them
    ffn: int
    vocab_size: int
    length: int  # tokens in a row
    angles: int  # model.rope.original_max_position
    positions: int  # of a row that enter the model: with a noisy half more than its tokens
    dual: bool  # rows enter the model as [noisy | clean]
    block_size: int
    packed: bool  # documents kept apart start blocks anywhere, so that blocks may straddle the cuts of a row
    whole_network: bool  # a drafter: every rank holds all layers and whole rows


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """A layout. Data parallelism is whatever ranks are left."""

    tensor: int
    pipeline: int
    virtual_pipeline: int
    context: int
    sequence: bool
    micro_batch: int  # rows

    @property
    def model_ranks(self) -> int:
        return self.tensor * self.pipeline * self.context


def layout_problem(needs: LayoutConstraints, choice: ParallelLayout) -> Problem | None:
    """The first reason why `choice` cannot be, or None."""
    return next(_problems(needs, choice), None)


def layout_advice(needs: LayoutConstraints, asked: ParallelLayout) -> str:
    """What to type instead of an impossible `asked`: the nearest layout of the same ranks and batch; with another
    global batch only where there is none."""
    sizes = [needs.global_batch]
    # One row a rank is always possible.
    for distance in range(1, max(needs.global_batch, needs.world_size) + 1):
        sizes += [needs.global_batch + distance, needs.global_batch - distance]
    for size in sizes:
        found = nearest_layout(replace(needs, global_batch=size), asked) if size > 0 else None
        if found is not None:
            batch = [] if size == needs.global_batch else [f"train.global_batch={size}"]
            return " ".join(["use", *batch, *_overrides(asked, found)])
    raise AssertionError(f"no layout of {needs.world_size} ranks for any global batch")


def nearest_layout(needs: LayoutConstraints, asked: ParallelLayout) -> ParallelLayout | None:
    """The possible layout of needs.world_size ranks that differs least from `asked`."""
    possible = (choice for choice in _candidates(needs, asked) if layout_problem(needs, choice) is None)
    return min(possible, key=lambda choice: _distance(choice, asked), default=None)


def _problems(needs: LayoutConstraints, choice: ParallelLayout) -> Iterator[Problem]:
    """Every reason against `choice`; each check may rely on those before it."""
    product = choice.model_ranks
    if needs.world_size % product:
        yield (
            f"parallel.world_size={needs.world_size} with tensor x pipeline x context = {product}",
            "a multiple of the product",
        )
        return
    yield from _uncut_tensors(needs, choice)
    yield from _uncut_layers(needs, choice)
    yield from _uncut_rows(needs, choice)
    yield from _uncut_batch(needs, choice)


def _uncut_tensors(needs: LayoutConstraints, choice: ParallelLayout) -> Iterator[Problem]:
    for name, count in (("kv_heads", needs.kv_heads), ("ffn", needs.ffn), ("vocab_size", needs.vocab_size)):
        if count % choice.tensor:
            yield f"parallel.tensor={choice.tensor} with model.{name}={count}", f"divisors of {count}"
    if choice.sequence and choice.tensor == 1:
        yield "parallel.sequence=True with parallel.tensor=1", "sequence parallelism together with tensor > 1"


def _uncut_layers(needs: LayoutConstraints, choice: ParallelLayout) -> Iterator[Problem]:
    stages = choice.pipeline * choice.virtual_pipeline
    if needs.layers % stages:
        yield (
            f"model.layers={needs.layers} with pipeline x virtual_pipeline = {stages}",
            f"divisors of {needs.layers}",
        )
    if choice.virtual_pipeline > 1 and choice.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline={choice.virtual_pipeline} with parallel.pipeline=1",
            "virtual_pipeline 1 unless pipeline is 2 or more",
        )


def _uncut_rows(needs: LayoutConstraints, choice: ParallelLayout) -> Iterator[Problem]:
    chunks = 2 * choice.context
    if choice.context > 1:
        got = f"parallel.context={choice.context} with data.sequence_length={needs.length}"
        if needs.length % chunks:
            yield got, f"a sequence_length that 2 x context = {chunks} divides: each rank holds two chunks of a row"
            return
        chunk = needs.length // chunks
        if needs.dual and not needs.packed and chunk % needs.block_size:
            yield (
                f"{got} and diffusion.block_size={needs.block_size}",
                f"block sizes that divide the {chunk} tokens of a chunk (two chunks a rank)",
            )
        if needs.angles % chunks:
            yield (
                f"parallel.context={choice.context} with model.rope.original_max_position={needs.angles}",
                f"divisors of {needs.angles // 2}: Megatron cuts its table of rotary angles as well",
            )
    positions = needs.positions // choice.context
    if choice.sequence and positions % choice.tensor:
        yield (
            f"parallel.sequence=True with parallel.tensor={choice.tensor} and {positions} positions on a context rank",
            f"divisors of {positions}",
        )


def _uncut_batch(needs: LayoutConstraints, choice: ParallelLayout) -> Iterator[Problem]:
    step_rows = choice.micro_batch * (needs.world_size // choice.model_ranks)
    if needs.global_batch % step_rows:
        yield (
            f"train.global_batch={needs.global_batch} with micro_batch x data ranks = {step_rows}",
            "a multiple of the product",
        )
        return
    micro_batches = needs.global_batch // step_rows
    if choice.virtual_pipeline > 1 and micro_batches % choice.pipeline:
        yield (
            f"{micro_batches} micro-batches a step with parallel.virtual_pipeline={choice.virtual_pipeline}",
            f"a multiple of parallel.pipeline={choice.pipeline}: chunks take turns by so many micro-batches",
        )


def _candidates(needs: LayoutConstraints, asked: ParallelLayout) -> Iterator[ParallelLayout]:
    for tensor in divisors_of(gcd(needs.world_size, needs.kv_heads, needs.ffn, needs.vocab_size)):
        rest = needs.world_size // tensor
        for pipeline in divisors_of(1 if needs.whole_network else gcd(rest, needs.layers)):
            for context in divisors_of(1 if needs.whole_network else rest // pipeline):
                data = rest // pipeline // context
                if needs.global_batch % data:
                    continue
                for virtual_pipeline in divisors_of(needs.layers // pipeline if pipeline > 1 else 1):
                    for micro_batch in divisors_of(needs.global_batch // data):
                        yield ParallelLayout(
                            tensor=tensor,
                            pipeline=pipeline,
                            virtual_pipeline=virtual_pipeline,
                            context=context,
                            sequence=asked.sequence and tensor > 1,
                            micro_batch=micro_batch,
                        )


def _distance(choice: ParallelLayout, asked: ParallelLayout) -> tuple[float, ...]:
    """Doublings and halvings; how many ranks share the model counts most, because memory decided it."""

    def apart(name: str) -> float:
        return abs(log2(getattr(choice, name) / getattr(asked, name)))

    cuts = apart("tensor") + apart("pipeline") + apart("context")
    cost = 2 * apart("model_ranks") + cuts + apart("virtual_pipeline") / 2 + apart("micro_batch") / 4
    # Of equally near ones: small micro-batches, then cuts of matrices rather than of layers or rows.
    return round(cost, 6), choice.micro_batch, choice.context, choice.pipeline


def _overrides(asked: ParallelLayout, found: ParallelLayout) -> list[str]:
    changed = [entry.name for entry in fields(asked) if getattr(asked, entry.name) != getattr(found, entry.name)]
    section = {"micro_batch": "train"}
    return [f"{section.get(name, 'parallel')}.{name}={getattr(found, name)}" for name in changed]


def divisors_of(number: int) -> list[int]:
    """All of them, from 1 up."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]

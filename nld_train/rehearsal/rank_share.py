"""Which rows a rank of a large run reads and which parts of the weights it holds, asked of the rank itself; and whether
all ranks together have every row once and every weight whole."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from math import prod
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from nld_train.config import RunConfig
from nld_train.rehearsal.rank_memory import join_fake_groups
from nld_train.rehearsal.stand_ins import fake_gpu, install_stand_ins

if TYPE_CHECKING:
    from torch import nn

STEPS = 2  # whose rows are asked for
AXES = ("tensor", "context", "data", "pipeline")  # Megatron's order, the fastest first
Share = dict[str, Any]  # JSON: {"place": [one index an axis], "rows": [[numbers] a step], "weights": [[name, whole
# shape, offset, own shape], ...]}


class _RowNumbers(Dataset):
    """Rows that are their own numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        return number


def find_share(run: RunConfig, rank: int) -> Share:
    """The share of this rank, which it finds by Megatron's own groups, loader and checkpoint names. For a process of
    its own. The network is as short as it can be: one layer a chunk."""
    from megatron.core import parallel_state as groups

    install_stand_ins()
    join_fake_groups(run, rank)
    place = [
        groups.get_tensor_model_parallel_rank(),
        groups.get_context_parallel_rank(),
        groups.get_data_parallel_rank(),
        groups.get_pipeline_model_parallel_rank(),
    ]
    return {"place": place, "rows": _rows_by_step(run), "weights": list(_weight_parts(run))}


def _rows_by_step(run: RunConfig) -> list[list[int]]:
    from megatron.bridge.data.samplers import build_pretraining_data_loader
    from megatron.core import parallel_state as groups
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    loader = build_pretraining_data_loader(
        _RowNumbers(run.train.iterations * run.train.global_batch),
        consumed_samples=0,
        dataloader_type="single",
        micro_batch_size=run.train.micro_batch,
        num_workers=0,
        data_sharding=False,
        pin_memory=False,
        data_parallel_rank=groups.get_data_parallel_rank(),
        data_parallel_size=groups.get_data_parallel_world_size(),
    )
    batches = iter(loader)
    return [
        [number for batch in islice(batches, get_num_microbatches()) for number in batch.tolist()] for _ in range(STEPS)
    ]


def _weight_parts(run: RunConfig) -> Iterator[list[Any]]:
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from nld_train.model.provider import model_provider

    with fake_gpu():
        for chunk in _short_model(run, model_provider):
            state = chunk.sharded_state_dict()
            apply_factories(state)  # gate and up lie in one tensor of the model, and are cut one by one
            for part in nested_values(state):
                if isinstance(part, ShardedTensor):  # the others are Transformer Engine's extra states
                    own = [1] * part.prepend_axis_num + list(part.local_shape)
                    yield [part.key, list(part.global_shape), list(part.global_offset), own]


def _short_model(run: RunConfig, provider: Any) -> "list[nn.Module]":
    """This rank's chunks of the network with one layer in each."""
    chunks = run.parallel.pipeline * run.parallel.virtual_pipeline
    maker = provider(replace(run, model=replace(run.model, layers=chunks)))
    maker.finalize()
    maker.perform_initialization = False
    made: list[nn.Module] = maker.provide_distributed_model(wrap_with_ddp=False)
    return made


def ranks_to_ask(run: RunConfig, most: int) -> list[int]:
    """Every rank that shares a model with rank 0, and at most `most` ranks that read other rows: the first and the
    last, and others evenly between them."""
    sizes = [getattr(run.parallel, axis) for axis in AXES]
    data = sizes[AXES.index("data")]
    readers = {round(place * (data - 1) / max(1, min(most, data) - 1)) for place in range(min(most, data))}
    peers = [place for place in product(*map(range, sizes)) if place[AXES.index("data")] == 0]
    others = [(0, 0, reader, 0) for reader in sorted(readers - {0})]
    return sorted(_rank_number(place, sizes) for place in [*peers, *others])


def _rank_number(place: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(index * prod(sizes[:axis]) for axis, index in enumerate(place))


def share_faults(run: RunConfig, shares: Sequence[Share]) -> list[str]:
    """What is wrong with the shares of the ranks that were asked; nothing, if all is right."""
    return [*_row_faults(run, shares), *_weight_faults(run, shares)]


def _row_faults(run: RunConfig, shares: Sequence[Share]) -> Iterator[str]:
    by_reader: dict[int, list[list[int]]] = {}
    for share in shares:
        reader = share["place"][AXES.index("data")]
        if by_reader.setdefault(reader, share["rows"]) != share["rows"]:
            yield f"ranks that share a model read other rows: {share['place']} {share['rows'][0][:4]}"
    batch = run.train.global_batch
    for step in range(STEPS):
        read = Counter(number for rows in by_reader.values() for number in rows[step])
        own = {*range(step * batch, (step + 1) * batch)}
        if read.keys() - own or max(read.values()) > 1:
            yield f"rows of step {step + 1} are read twice, or are another step's"
        if len(by_reader) == run.parallel.data and read.keys() != own:
            yield f"rows of step {step + 1} that nobody reads: {sorted(own - read.keys())[:4]}"
        if any(len(rows[step]) != batch // run.parallel.data for rows in by_reader.values()):
            yield f"ranks read unequal numbers of rows in step {step + 1}"


def _weight_faults(run: RunConfig, shares: Sequence[Share]) -> Iterator[str]:
    """Parts of one weight lie side by side and fill it. Parts at one offset are copies."""
    parts: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = defaultdict(dict)
    wholes: dict[str, list[int]] = {}
    for share in shares:
        for name, whole, offset, own in share["weights"]:
            if wholes.setdefault(name, whole) != whole or parts[name].setdefault(tuple(offset), tuple(own)) != tuple(
                own
            ):
                yield f"{name}: ranks do not agree on its shape"
    for name, found in parts.items():
        if sum(map(prod, found.values())) != prod(wholes[name]):
            yield f"{name} {wholes[name]}: its parts {sorted(found)[:4]} do not fill it"
    expected = run.parallel.pipeline * run.parallel.virtual_pipeline
    stacked = {wholes[name][0] for name in wholes if ".layers." in name}
    if stacked != {expected}:
        yield f"layers of {sorted(stacked)} in place of {expected}"

"""Time of a training step on rows with images: L_text + L positions, [noisy text | clean], against a doubled row of 2L.

    .venv/bin/python benchmarks/image_rows.py            # L 2,048, image shares 0.25, 0.5, 0.75, on the CPU

One row of one conversation: images first, then text of which the last half is answers. Forward and backward of
Megatron's model, without the vision tower, whose work is the same in both, and without the optimizer. The two have the
same weights, and so the same loss. They take turns; ratios are medians of the rounds' ratios of CPU seconds. Beside
them stands the arithmetic: FLOPs of the linear maps, of the pairs that see each other, and of the LM head on the rows
that have a loss.
"""

import argparse
import gc
import logging
import time
from dataclasses import dataclass
from statistics import median

import torch

from nld_train.bench.megatron_rank import start_single_rank
from nld_train.config import RunConfig
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.noise.corrupt import corrupt_row
from nld_train.recipe import load_recipe
from nld_train.train import cpu_runtime, patches
from nld_train.types import Batch, Row

SHARES = (0.25, 0.5, 0.75)
TEXT = 200  # an id of text
SHAPE = (
    "model.layers=4",
    "model.hidden=512",
    "model.ffn=1536",
    "model.heads=8",
    "model.kv_heads=4",
    "model.head_dim=64",
)


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs of a row, forward and backward."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head


def image_run(length: int, text_length: int) -> RunConfig:
    """A run whose rows have so many tokens, and so many places of text."""
    lengths = [f"data.sequence_length={length}", f"data.text_length={text_length}"]
    others = [
        "train.micro_batch=1",
        "parallel.world_size=1",
        "model.vocab_size=8192",
        f"model.rope.original_max_position={length}",
    ]
    return load_recipe("tiny_vlm", [*SHAPE, *lengths, *others])


def row_of_images(length: int, share: float, clean_only: bool) -> Row:
    """Tokens of images, then text, the last half of it answers. clean_only: whether images have no noisy copy."""
    images = round(length * share)
    place = torch.arange(length + 1)
    return Row(
        index=0,
        tokens=torch.full((length + 1,), TEXT),
        supervised=place >= images + (length - images) // 2,
        documents=torch.zeros(length, dtype=torch.int64),
        clean_only=(place[:-1] < images) if clean_only else None,
    )


def make_step(run: RunConfig, row: Row):
    """A function that runs forward and backward once, the batch and the model."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from nld_train.dual_stream.batch import collate_rows
    from nld_train.model.provider import model_provider
    from nld_train.objectives.choose import objective_of
    from nld_train.train.forward_step import MegatronForwards

    maker = model_provider(run)
    maker.finalize()
    maker._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    model, objective = maker.provide(pre_process=True, post_process=True), objective_of(run)
    batch = collate_rows([corrupt_row(row, run.diffusion, "train", 1)], run.diffusion, text_length=run.data.text_length)

    def step() -> float:
        nll, loss = objective.forward_loss(MegatronForwards(model), batch)
        value, *_ = loss(nll)
        value.backward()
        model.zero_grad(set_to_none=True)
        return float(value.detach())

    return step, batch, model


def row_arithmetic(run: RunConfig, batch: Batch) -> Arithmetic:
    """FLOPs by the batch's own positions, pairs and LM-head rows; a backward is twice its forward."""
    model, layout = (
        run.model,
        RowLayout(run.data.sequence_length, run.diffusion.block_size, True, text_length=run.data.text_length),
    )
    pairs = int(visible_table(layout, batch.documents, batch.clean_only).sum())
    attention = (2 * model.heads + 2 * model.kv_heads) * model.head_dim * model.hidden
    weights = attention + 3 * model.hidden * model.ffn
    return Arithmetic(
        layers=3 * model.layers * 2 * weights * layout.size,
        attention=3 * model.layers * 4 * model.heads * model.head_dim * pairs,
        head=3 * 2 * model.hidden * model.vocab_size * batch.head_positions.numel(),
    )


def cpu_seconds(step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048, help="L, tokens of a row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args()
    cpu_runtime.install_cpu_runtime()
    patches.apply_patches()
    start_single_rank(torch.device("cpu"))
    print("share of images   positions        CPU s           measured   FLOPs   linear maps   pairs   loss")
    for share in SHARES:
        text = args.length - round(args.length * share)
        runs = image_run(args.length, text), image_run(args.length, args.length)
        made = [make_step(run, row_of_images(args.length, share, run.data.text_length == text)) for run in runs]
        steps, batches, models = zip(*made, strict=True)
        models[1].load_state_dict(models[0].state_dict())
        losses = [step() for step in steps]
        rounds = [[cpu_seconds(step) for step in steps] for _ in range(args.rounds)]
        ours, doubled = (row_arithmetic(run, batch) for run, batch in zip(runs, batches, strict=True))
        print(
            f"{share:<18}{runs[0].positions:,} / {runs[1].positions:,}"
            f"{median(one[0] for one in rounds):10.2f} / {median(one[1] for one in rounds):.2f}"
            f"{median(one / other for one, other in rounds):12.3f}{ours.total / doubled.total:10.3f}"
            f"{ours.layers / doubled.layers:12.3f}{ours.attention / doubled.attention:10.3f}"
            f"   {losses[0]:.4f} / {losses[1]:.4f}",
            flush=True,
        )
        del made, steps, models
        gc.collect()


if __name__ == "__main__":
    main()

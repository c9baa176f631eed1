"""The plan of runs with images: what stands in front of the language model, and rows without images in the noisy half.

The tower's numbers are compared with transformers' own modules.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nld_train.config import RunConfig
from nld_train.model_sizes import NLD_8B
from nld_train.plan import flops, memory, network, row_counts, vision_plan
from nld_train.plan.dry_run import dry_run_text
from nld_train.plan.parameters import model_parameters
from nld_train.recipe import load_recipe
from nld_train.vision_config import VisionConfig
from tests.model.images import VISION, images_of
from tests.plan.test_memory import kept_storages

TEXT, LENGTH = 12, 32  # tokens; the images of a row are 20 cells


@pytest.fixture
def seeing(small_run: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Build the small run with a tower; keywords as for the text run, or settings of the tower."""

    def build(train_tower: bool = True, **settings: object) -> RunConfig:
        run = small_run(**settings)
        return replace(
            run,
            diffusion=replace(run.diffusion, document_mask=True),
            data=replace(run.data, chat=True, text_length=TEXT),
            vision=replace(VISION, train_tower=train_tower),
        )

    return build


def built(run: RunConfig, recompute: bool = False) -> tuple[torch.nn.Module, torch.nn.Module]:
    from nld_train.model.vision_tower import build_tower

    assert run.vision is not None
    return build_tower(run.vision, run.model.hidden, run.model.norm_eps, recompute, torch.float32)


class Seen(torch.nn.Module):
    """The tower and its projector on the images that the plan reckons with: one of 4 x 5 cells in each row."""

    def __init__(self, run: RunConfig, recompute: bool = False) -> None:
        super().__init__()
        self.tower, self.projector = built(run, recompute)
        self.images = images_of([(4, 5)] * run.train.micro_batch, torch.empty(0, dtype=torch.int64))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        from nld_train.model.vision_tower import image_features

        return image_features(self.tower, self.projector, replace(self.images, pixels=pixels))


@pytest.mark.megatron
def test_parameters_are_those_of_transformers_modules(seeing) -> None:
    counts = [sum(weight.numel() for weight in module.parameters()) for module in built(seeing())]
    found = vision_plan.vision_parameters(seeing())
    assert [found.tower, found.projector] == counts
    assert vision_plan.vision_parameters(seeing(train_tower=False)).trained == counts[1]


def test_parameters_are_those_of_ministral(seeing) -> None:
    """Counted by hand from its public configuration."""
    layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024
    tower = 3 * 14 * 14 * 1024 + 1024 + 24 * layer
    projector = 1024 + 4 * 1024 * 1024 + 1024 * 4096 + 4096 * 4096
    found = vision_plan.vision_parameters(replace(seeing(), model=NLD_8B, vision=VisionConfig()))
    assert (found.tower, found.projector) == (tower, projector)


@pytest.mark.megatron
def test_flops_are_those_that_torch_counts(seeing) -> None:
    run = seeing(micro_batch=1)
    seen = Seen(run)
    seen.tower.set_attn_implementation("eager")  # whose products torch counts on a CPU too
    with FlopCounterMode(display=False) as counter:
        seen(seen.images.pixels)
    assert vision_plan.vision_flops(run, passes=1) == counter.get_total_flops()
    assert flops.row_flops(run).vision == 3 * counter.get_total_flops()


def test_a_frozen_tower_runs_forward_alone(seeing) -> None:
    trained, frozen = (vision_plan.vision_flops(seeing(train_tower=train), 3) for train in (True, False))
    once = vision_plan.vision_flops(seeing(), 1)
    cells = 2 * vision_plan.cell_matrices(VISION, seeing().model.hidden) * (LENGTH - TEXT)
    assert trained == 3 * once and frozen == once + 2 * cells


@pytest.mark.megatron
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("train_tower", [True, False])
def test_the_tower_keeps_what_autograd_keeps(seeing, precision: str, recompute: str, train_tower: bool) -> None:
    run = seeing(train_tower=train_tower, precision=precision, micro_batch=1, recompute=recompute)
    seen = Seen(run, recompute == "full").to(torch.bfloat16 if precision == "bf16" else torch.float32)
    kept = kept_storages(seen, seen.images.pixels)
    if precision == "bf16" or not train_tower:
        kept += seen.images.pixels.nbytes  # which the batch holds all the same
    if train_tower and recompute == "full":
        # The angles are held by the call that will be made again, and not by autograd.
        kept += vision_plan.image_patches(run) * 2 * VISION.hidden // VISION.heads * vision_plan.ELEMENT[precision]
    planned = vision_plan.vision_activation_bytes(run)
    assert planned == kept


def pairs_by_rule(images: int, text: int, size: int) -> int:
    """Counted one by one: the images' tokens come first, and blocks count the text behind them."""
    places = [("clean", i) for i in range(images + text)] + [("noisy", i) for i in range(images, images + text)]

    def sees(query: tuple[str, int], key: tuple[str, int]) -> bool:
        (kind, i), (other, j) = query, key
        if kind == "clean":
            return other == "clean" and j <= i
        block = (i - images) // size
        return (j - images) // size == block if other == "noisy" else j < images + block * size

    return sum(sees(query, key) for query in places for key in places)


def test_pairs_are_those_of_one_conversation_with_its_images_first(seeing) -> None:
    run = seeing()
    assert row_counts.row_positions(run) == run.positions == TEXT + LENGTH
    assert row_counts.run_visible_pairs(run) == pairs_by_rule(LENGTH - TEXT, TEXT, 8)
    assert row_counts.symmetric_pairs(run) == pairs_by_rule(0, LENGTH, 8)
    assert row_counts.mask_density(run) == pairs_by_rule(LENGTH - TEXT, TEXT, 8) / (TEXT + LENGTH) ** 2


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_tower_stands_on_the_first_stage_whole_on_every_tensor_rank(seeing, small_run, tensor: int) -> None:
    cut = {"pipeline": 2, "tensor": tensor}
    count = vision_plan.vision_parameters(seeing()).total
    for stage, more in ((0, count), (1, 0)):
        run, text = (memory.stage_memory(each(**cut), stage) for each in (seeing, small_run))
        assert run.weights - text.weights == 2 * more
        assert run.gradients - text.gradients == 4 * more
        assert bool(run.images) == bool(run.image_backward) == bool(more)
    assert run.total == run.weights + run.gradients + run.optimizer + run.activations + run.transient


def test_a_frozen_tower_has_weights_and_no_gradients_or_moments(seeing) -> None:
    trained, frozen = (seeing(train_tower=train, world_size=1) for train in (True, False))
    tower = vision_plan.vision_parameters(trained).tower
    here, there = memory.stage_memory(trained, 0), memory.stage_memory(frozen, 0)
    assert here.weights == there.weights
    assert (here.gradients - there.gradients, here.optimizer - there.optimizer) == (4 * tower, 12 * tower)
    saved, spared = memory.checkpoint_size(trained), memory.checkpoint_size(frozen)
    assert (saved.weights - spared.weights, saved.optimizer - spared.optimizer) == (0, 12 * tower)
    assert saved.weights == 2 * (model_parameters(trained.model).total + vision_plan.vision_parameters(trained).total)


@pytest.mark.parametrize(("cut", "held"), [({}, 1), ({"pipeline": 2}, 2), ({"pipeline": 2, "virtual_pipeline": 2}, 3)])
def test_images_of_all_micro_batches_in_flight_are_held(seeing, cut: dict, held: int) -> None:
    run = seeing(**cut)
    assert memory.stage_memory(run, 0).images == held * vision_plan.vision_activation_bytes(run)
    assert vision_plan.images_in_flight(run, 1) == 1


def test_what_the_tower_adds_to_the_network(seeing, small_run) -> None:
    """Its gradients and its weights over the data ranks; over the tensor ranks the average of its gradients, and the
    whole embeddings in place of shards."""
    cut = {"tensor": 2, "sequence": True, "world_size": 4}
    run = seeing(**cut)
    text = replace(run, vision=None, data=replace(run.data, text_length=None))
    sent = [
        {each.purpose: each.sent for each in network.stage_traffic(each, 0, 0.0)}
        for each in (run, replace(text, data=replace(text.data, sequence_length=32)))
    ]
    count = vision_plan.vision_parameters(run).total
    assert sent[0]["gradients"] - sent[1]["gradients"] == 4 * count / 2
    assert sent[0]["weights"] - sent[1]["weights"] == 2 * count / 2
    layers, batches = 10 * run.model.layers, row_counts.micro_batches(run)
    stream = run.train.micro_batch * run.positions * run.model.hidden * 2
    assert sent[0]["tensor"] == ((layers + 2 + 1 + 1) * batches * stream + 2 * 4 * count) / 2


def published(*overrides: str) -> RunConfig:
    run = load_recipe("nld_8b_sft", [*overrides])
    return replace(run, vision=VisionConfig(), data=replace(run.data, text_length=4096))


def test_the_report_says_what_images_take_and_spare() -> None:
    text = dry_run_text(published("parallel.recompute=full"))
    for words in (
        "8,918,026,240",
        "vision tower 403,305,472, trained; projector 25,166,848",
        "12,288 cells = L - L_text, 49,152 patches of 14 pixels",
        "L_text + L = 4,096 + 16,384 = 20,480 positions, against 2L = 32,768",
        "35.3% fewer FLOPs and 37.5% (1.781 GB) less memory",
        "(one conversation, its images first)",
        ", vision 1.1e+10)",
        "the 4 GPUs of a replica wait for one tower",
        "1 micro-batch(es) in flight x 3.9",
        "tower backward",
        "fits an 80 GB GPU",
    ):
        assert words in text, words
    assert "DOES NOT FIT" in dry_run_text(published())


def test_what_is_spared_is_the_difference_to_rows_with_images_in_both_halves() -> None:
    run = published()
    whole = replace(run, data=replace(run.data, text_length=None))
    ours, theirs = flops.row_flops(run), flops.row_flops(whole)
    spared = 1 - (ours.layers + ours.attention) / (theirs.layers + theirs.attention)
    kept = [memory.stage_memory(each, 0) for each in (run, whole)]
    ours_kept, theirs_kept = (each.activations + each.layer_backward for each in kept)
    words = f"{spared:.1%} fewer FLOPs and {1 - ours_kept / theirs_kept:.1%} ({(theirs_kept - ours_kept) / 1e9:.3f} GB)"
    assert words in dry_run_text(run)


def test_text_runs_have_no_line_of_images() -> None:
    text = dry_run_text(load_recipe("nld_8b_sft"))
    assert not any(word in text for word in ("vision", "images", "asymmetric", "tower"))


def test_a_frozen_tower_is_said_to_be() -> None:
    run = published()
    assert "403,305,472, not trained" in dry_run_text(replace(run, vision=VisionConfig(train_tower=False)))


def test_the_time_is_that_of_the_gpu_that_has_the_tower(seeing) -> None:
    """Without images a run on twice the GPUs takes half the time; the tower, which all tensor ranks repeat, takes as
    long as before."""
    alone, shared = seeing(world_size=2, tensor=1), seeing(world_size=2, tensor=2)
    row = flops.row_flops(alone)
    assert flops.run_days(shared) / flops.run_days(alone) == pytest.approx((row.total + row.vision) / row.total)

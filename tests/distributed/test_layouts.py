"""Real ranks on real runs: the layout, the resume and the evaluation do not change the training.

A short cut through the matrix of layouts (tests/distributed/test_matrix.py), four steps each.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nld_train.config import RunConfig
from nld_train.data.run_rows import open_run_rows
from nld_train.decode.self_speculation import generate_self_speculation
from nld_train.decode.settings import DecodeConfig
from nld_train.evaluation.evaluated_model import ModelChoice, open_evaluated_model
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from nld_train.hf.modeling_ministral import KVCache
from tests.chat_files import on_conversations
from tests.distributed.ranks import figures, logged, on, small_run, train_together, with_train

pytestmark = pytest.mark.megatron

# Every way to cut a run in two, in the stages where it is most at work; recomputation rides along.
LAYOUTS: dict[str, tuple[tuple[str, ...], dict[str, int | bool | str]]] = {
    "data2": (("packed", "chat"), {}),
    "tensor2_sequence": (("packed",), {"tensor": 2, "sequence": True, "recompute": "selective"}),
    "pipeline2_chunks2": (("packed",), {"pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}),
    "context2": (("ar", "joint", "packed"), {"context": 2}),
}
LENGTH, BLOCK, MASK = 64, 8, 100  # of `small_run`
DRAFT_FIGURES = {"accepted length", "tokens per forward", *(f"drafts kept up to {place}" for place in range(1, BLOCK))}
DRAFTED = 3  # rows at an evaluation: they share out to two ranks unevenly
CASES = [(stage, layout) for layout, (stages, _) in LAYOUTS.items() for stage in stages]


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    """All runs of this file, trained on one rank, then on two."""
    folder = tmp_path_factory.mktemp("layouts")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)

    def run(stage: str, layout: str, ranks: int = 1, **cut: int | bool | str) -> RunConfig:
        alpha = 0.0 if stage == "ar" else 0.3
        made = small_run(f"{stage}_{layout}", folder, alpha=alpha, init="stage1", parallel=on(ranks, **cut))
        made = with_train(made, eval_decode=DRAFTED)
        if stage == "chat":
            return on_conversations(made, folder)
        return replace(made, diffusion=replace(made.diffusion, document_mask=stage == "packed"))

    def plain(made: RunConfig) -> RunConfig:
        """Without evaluations, and saved once."""
        made = with_train(made, eval_batches=0)
        return replace(made, checkpoint=replace(made.checkpoint, interval=made.train.iterations))

    stage1 = small_run("stage1", folder, alpha=0.0, init=None, parallel=on(1))
    alone = [stage1, plain(run("ar", "one")), run("joint", "one"), run("packed", "one")]
    alone.append(plain(with_train(run("joint", "splits"), micro_batch=4)))
    alone += [plain(run("joint", "unevaluated")), with_train(run("joint", "undrafted"), eval_decode=0)]
    alone.append(plain(run("chat", "one")))
    whole = run("joint", "resumed")
    half = with_train(replace(whole, name="joint_half"), iterations=2)
    alone += [replace(half, optimizer=replace(half.optimizer, decay_iterations=0)), whole]
    together = [run(stage, layout, 2, **LAYOUTS[layout][1]) for stage, layout in CASES]
    evaluated = {"joint_context2", *(f"packed_{layout}" for layout in LAYOUTS)}
    together = [each if each.name in evaluated else plain(each) for each in together]
    train_together(alone, folder)
    train_together(together, folder)
    return {each.name: each for each in [*alone, *together]}


@pytest.mark.parametrize(("stage", "layout"), CASES)
def test_the_layout_does_not_change_training(trained: dict[str, RunConfig], stage: str, layout: str) -> None:
    one, cut = figures(trained[f"{stage}_one"]), figures(trained[f"{stage}_{layout}"])
    assert len(one) == len(cut) == 4
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_the_layout_does_not_change_evaluations(trained: dict[str, RunConfig]) -> None:
    one, cut = (figures(trained[f"joint_{layout}"], "validation") for layout in ("one", "context2"))
    assert len(one) == len(cut) == 2
    for expected, got in zip(one, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def drafts(run: RunConfig) -> list[dict[str, float]]:
    """What a run's evaluations say of drafts."""
    return [{name: entry[name] for name in entry if name in DRAFT_FIGURES} for entry in logged(run, "validation")]


@pytest.mark.parametrize(("one", "cut"), [("joint", "context2"), *(("packed", layout) for layout in LAYOUTS)])
def test_the_layout_does_not_change_what_is_drafted(trained: dict[str, RunConfig], one: str, cut: str) -> None:
    expected, got = drafts(trained[f"{one}_one"]), drafts(trained[f"{one}_{cut}"])
    assert len(expected) == 2 and set(expected[0]) == DRAFT_FIGURES
    assert got == expected


def test_drafting_changes_no_training_and_no_other_figure(trained: dict[str, RunConfig]) -> None:
    without, with_drafts = trained["joint_undrafted"], trained["joint_one"]
    assert drafts(without) == [{}, {}]
    for kind in ("train", "validation"):
        assert figures(without, kind) == figures(with_drafts, kind)
    # Weights, moments and the states of all random number generators, byte for byte.
    weights = "checkpoints/iter_0000004/__0_0.distcp"
    assert Path(without.output, weights).read_bytes() == Path(with_drafts.output, weights).read_bytes()


def test_tensorboard_is_given_what_is_drafted(trained: dict[str, RunConfig]) -> None:
    """W&B too: Megatron-Bridge writes one dictionary to both."""
    events = EventAccumulator(f"{trained['joint_one'].output}/tensorboard")
    events.Reload()
    for name in ("accepted length", "tokens per forward"):
        written = [event.value for event in events.Scalars(f"{name} validation")]
        assert written == [entry[name] for entry in drafts(trained["joint_one"])]


def test_a_resumed_run_drafts_what_the_undisturbed_one_does(trained: dict[str, RunConfig]) -> None:
    assert drafts(trained["joint_resumed"])[-1] == drafts(trained["joint_one"])[-1]


@pytest.mark.parametrize("stage", ["joint", "packed"])
@pytest.mark.parametrize(("weights", "entry"), [("stage1", 0), ("{}_one", -1)])
def test_drafts_are_kept_as_decoding_keeps_them(
    trained: dict[str, RunConfig], stage: str, weights: str, entry: int
) -> None:
    """Block by block with the converted model: the text before a block is the prompt, its first token the seed."""
    run = trained[f"{stage}_one"]
    model = open_evaluated_model(
        ModelChoice(Path(trained[weights.format(stage)].output), dtype=torch.float32)
    ).model.eval()
    rows, kept = open_run_rows(run, Path(run.output) / "data_index")["validation"], []
    for number in range(DRAFTED):
        sample = rows[number]
        tokens, start = torch.from_numpy(sample["tokens"]), 0
        for length in sample["document_lengths"] if stage == "packed" else [LENGTH]:
            for seed in range(start, min(start + length, LENGTH) - BLOCK + 1, BLOCK):
                kept.append(accepted_by_decoding(model, tokens[start:seed], tokens[seed]))
                if start < seed < LENGTH - BLOCK:
                    check_first_round_of_generation(model, tokens[start:seed])
            start += length
    found = drafts(run)[entry]
    # The corpus of the tests is our own code: after some steps on it every draft may be refused, or kept alike.
    assert len(set(kept)) > 1 or entry == -1
    assert found["accepted length"] == pytest.approx(1 + sum(kept) / len(kept), rel=1e-6)
    for place in range(1, BLOCK):
        share = sum(count >= place for count in kept) / len(kept)
        assert found[f"drafts kept up to {place}"] == pytest.approx(share, rel=1e-6)


@torch.no_grad()
def accepted_by_decoding(model: torch.nn.Module, prompt: torch.Tensor, seed: torch.Tensor) -> int:
    """How many drafts of one round of linear self-speculation are accepted."""
    cache = KVCache(1)
    if len(prompt):
        extend_cache(model, prompt[None], cache)
    block = torch.full((1, BLOCK), MASK)
    block[0, 0] = seed
    block[:, 1:] = noisy_logits(model, block, cache, MASK)[:, 1:].argmax(-1)
    best = extend_cache(model, block, cache)[:, :-1].argmax(-1)
    return int((best == block[:, 1:]).long().cumprod(1).sum())


def check_first_round_of_generation(model: torch.nn.Module, prompt: torch.Tensor) -> None:
    """Greedy decoding, which chooses the seed itself, accepts as many drafts in its first round."""
    settings = DecodeConfig(max_new_tokens=BLOCK + 1, block_length=BLOCK)
    (answer,) = generate_self_speculation(model, [prompt.tolist()], settings)
    seed = torch.tensor(answer.ids[0])
    assert answer.accepted_lengths[0] == accepted_by_decoding(model, prompt, seed) + 1


def test_documents_kept_apart_are_another_training(trained: dict[str, RunConfig]) -> None:
    assert figures(trained["packed_one"])[0] != figures(trained["joint_one"])[0]


def test_micro_batches_do_not_change_training(trained: dict[str, RunConfig]) -> None:
    for expected, got in zip(figures(trained["joint_one"]), figures(trained["joint_splits"]), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_stage_2_starts_where_stage_1_ended(trained: dict[str, RunConfig]) -> None:
    last = logged(trained["stage1"], "validation")[-1]
    first = logged(trained["joint_one"], "validation")[0]
    assert (last["step"], first["step"]) == (4, 0)
    assert first["AR loss"] == pytest.approx(last["AR loss"], rel=1e-6)


def test_resuming_continues_bit_for_bit(trained: dict[str, RunConfig]) -> None:
    """Steps 3 and 4 after a restart at step 2 have the very losses of the undisturbed run."""
    undisturbed, resumed = figures(trained["joint_one"]), figures(trained["joint_resumed"])
    assert len(resumed) == 4, "2 steps before the restart, 2 after it"
    assert resumed == undisturbed


def test_evaluation_does_not_change_training(trained: dict[str, RunConfig]) -> None:
    assert logged(trained["joint_unevaluated"], "validation") == []
    assert figures(trained["joint_unevaluated"]) == figures(trained["joint_one"])


def test_every_evaluation_sees_the_same_rows_and_noise(trained: dict[str, RunConfig]) -> None:
    ratios = {entry["mask ratio"] for entry in logged(trained["joint_one"], "validation")}
    assert len(ratios) == 1


def test_training_learns(trained: dict[str, RunConfig]) -> None:
    first, *_, last = figures(trained["stage1"])
    assert last[0] < first[0] - 0.05


@pytest.mark.parametrize("name", ["joint_one", "joint_resumed"])
def test_the_logged_learning_rate_is_the_one_that_the_step_took(trained: dict[str, RunConfig], name: str) -> None:
    """Constant for half of the 4 steps, then minus the root: the fourth step is half-way down."""
    high, low = 1e-3, 1e-4
    expected = [high, high, high, low + (high - low) * (1 - 0.5**0.5)]
    assert [entry["learning rate"] for entry in logged(trained[name])] == pytest.approx(expected)

from dataclasses import replace

import pytest
import torch

from nld_train import row_arithmetic
from nld_train.bench.measure import peak_bytes
from nld_train.config import RunConfig
from nld_train.loss import lm_head
from nld_train.objectives.choose import objective_of
from nld_train.plan import memory
from nld_train.plan.parameters import matrix_parameters, model_parameters


def kept_storages(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, weights left out; each storage once."""
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return sum(storage.nbytes() for storage in kept.values())


def test_a_layer_keeps_what_autograd_keeps(small_run, layer) -> None:
    run = small_run(precision="fp32", micro_batch=2)
    x = torch.randn(2, 64, run.model.hidden, requires_grad=True)
    norm_statistics = 2 * 2 * 64 * memory.FP32  # one number a position and norm: reckoned as nothing
    assert kept_storages(layer, x) - norm_statistics == memory.stored_activation_bytes(run, recompute_attention=False)


@pytest.mark.parametrize("chunk", [64 * 128, 64 * 512])
def test_the_head_takes_what_the_loss_holds(small_run, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """The streams around it are in the layers' count too, and not in this one."""
    monkeypatch.setattr(row_arithmetic, "CHUNK_LOGITS", chunk)
    run = small_run(precision="fp32", micro_batch=1)
    rows, hidden = rows_of(run), run.model.hidden
    x, head = torch.randn(rows, hidden, requires_grad=True), torch.randn(1024, hidden, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.int64)

    def step() -> None:
        torch.autograd.grad(lm_head.head_nll(x, head, targets).sum(), (x, head))

    streams = 4 * rows * hidden * memory.FP32
    held = peak_bytes(step, torch.device("cpu"))
    assert held <= memory.head_bytes(run) - streams < 1.05 * held


def rows_of(run: RunConfig) -> int:
    return run.train.micro_batch * objective_of(run).most_head_rows()


def test_bf16_halves_the_streams_and_the_weights_gradient_and_nothing_else(small_run) -> None:
    """64 rows of hidden 24, vocabulary 1,024, all of it in one chunk."""
    wide, narrow = (memory.head_bytes(small_run(precision=precision, micro_batch=1)) for precision in ("fp32", "bf16"))
    assert wide - narrow == 2 * (1024 * 24 + 4 * 64 * 24)
    assert narrow == 4 * 64 * 1024 * 4 + 1024 * 24 * 2 + 2 * 64 * 24 * 4 + 4 * 64 * 24 * 2


def test_mixed_precision_takes_two_bytes_four_bytes_and_twelve_shared(small_run) -> None:
    stage = memory.stage_memory(small_run(), 0)
    count = model_parameters(small_run().model).total
    assert (stage.weights, stage.gradients, stage.optimizer) == (2 * count, 4 * count, 12 * count // 8)


def test_without_the_distributed_optimizer_every_rank_holds_all_of_it(small_run) -> None:
    count = model_parameters(small_run().model).total
    assert memory.stage_memory(small_run(distributed_optimizer=False), 0).optimizer == 12 * count
    assert memory.stage_memory(small_run(distributed_optimizer=False, precision="fp32"), 0).optimizer == 8 * count


@pytest.mark.parametrize("part", ["weights", "gradients", "activations", "layer_backward", "head", "total"])
def test_more_tensor_ranks_take_less_of_everything(part, small_run) -> None:
    sizes = [getattr(memory.worst_stage(small_run(tensor=n, sequence=n > 1)), part) for n in (1, 2, 4)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_sequence_parallelism_and_recomputation_take_less_activations(small_run) -> None:
    def activations(**cut) -> int:
        return memory.stage_memory(small_run(tensor=2, **cut), 0).activations

    assert activations(sequence=True) < activations()
    assert activations(recompute="full") < activations(recompute="selective") < activations()


def test_the_joint_stage_doubles_the_activations(small_run) -> None:
    joint, ar = (memory.stage_memory(small_run(alpha=alpha), 0) for alpha in (0.3, 0.0))
    assert joint.activations == 2 * ar.activations
    assert joint.weights == ar.weights


def test_context_parallelism_cuts_activations_and_not_weights(small_run) -> None:
    one, cut = (memory.stage_memory(small_run(context=n, recompute="selective"), 0) for n in (1, 2))
    assert cut.activations == one.activations // 2
    assert cut.head < one.head, "fewer rows, but the weight's gradient is whole"
    assert (cut.weights, cut.optimizer) == (one.weights, one.optimizer)


def test_gathered_keys_and_values_are_kept_in_place_of_the_ranks_own(small_run) -> None:
    run = small_run(context=2, micro_batch=1)
    positions, own = 32, 4 * 24 + 2 * 8 * 8 + 3 * 40  # [noisy | clean] of 16 tokens; streams, query and output, SwiGLU
    gathered = (32 + 16) * 2 * 4 * 8  # all clean keys and values, and the rank's own noisy ones
    statistics = positions * 8 * 4
    assert (
        memory.stored_activation_bytes(run, recompute_attention=False) == 2 * (positions * own + gathered) + statistics
    )
    apart = replace(run, diffusion=replace(run.diffusion, document_mask=True))
    assert memory.gathered_keys(apart) == 2 * (32 + 32) * 2 * 4 * 8


def test_pipelining_leaves_the_first_stage_a_whole_models_activations(small_run) -> None:
    """1F1B: stage s of P holds P - s micro-batches of layers / P layers."""
    run = small_run(pipeline=4)
    assert [memory.layers_in_flight(run, stage) for stage in range(4)] == [4, 3, 2, 1]


def test_virtual_stages_hold_more_activations(small_run) -> None:
    run = small_run(pipeline=2, virtual_pipeline=2)
    assert [memory.layers_in_flight(run, stage) for stage in (0, 1)] == [5, 3]


def test_no_more_micro_batches_are_in_flight_than_a_step_has(small_run) -> None:
    run = small_run(pipeline=4, micro_batch=2, global_batch=4)
    assert memory.layers_in_flight(run, 0) == 1


def test_the_worst_stage_is_reported(small_run) -> None:
    run = small_run(pipeline=2)
    assert memory.worst_stage(run).total == max(memory.stage_memory(run, stage).total for stage in (0, 1))


def test_the_verdict_turns_at_the_capacity(small_run) -> None:
    stage = memory.stage_memory(small_run(), 0)
    rest = int(memory.CAPACITY) - stage.total
    assert replace(stage, weights=stage.weights + rest).fits
    assert not replace(stage, weights=stage.weights + rest + 1).fits


def test_a_checkpoint_holds_fourteen_bytes_a_parameter_in_any_layout(small_run) -> None:
    count = model_parameters(small_run().model).total
    assert memory.checkpoint_size(small_run()).total == 14 * count
    assert memory.checkpoint_size(small_run(tensor=2, pipeline=2)).total == 14 * count
    assert memory.checkpoint_size(small_run(precision="fp32")).total == 16 * count


def test_a_layer_runs_backward_on_the_gradients_of_its_mlp_and_its_gathered_input(small_run) -> None:
    positions, hidden, ffn = 2 * 64, 24, 40
    assert memory.layer_backward_bytes(small_run()) == 2 * positions * (3 * ffn + 2 * hidden)
    assert memory.layer_backward_bytes(small_run(tensor=2)) == 2 * positions * (3 * ffn // 2 + 2 * hidden)
    full = small_run(recompute="full")
    again = memory.stored_activation_bytes(full, recompute_attention=False)
    assert memory.layer_backward_bytes(full) == memory.layer_backward_bytes(small_run()) + again


def with_fp8(run: RunConfig) -> RunConfig:
    return replace(run, train=replace(run.train, fp8="tensorwise"))


def test_fp8_adds_two_bytes_for_each_weight_of_the_layers_and_none_to_the_checkpoint(layer_of_eights) -> None:
    run = layer_of_eights
    maps = matrix_parameters(run.model) * run.model.layers
    for tensor in (1, 2):
        cut = replace(run, parallel=replace(run.parallel, tensor=tensor))
        more = memory.stage_memory(with_fp8(cut), 0).weights - memory.stage_memory(cut, 0).weights
        assert more == 2 * maps // tensor
    assert memory.checkpoint_size(with_fp8(run)) == memory.checkpoint_size(run)


def test_fp8_keeps_the_inputs_of_the_linear_maps_in_one_byte(layer_of_eights) -> None:
    """Of hidden 32, feed-forward 64 and 8 heads of 8: two norms' outputs and the product of SwiGLU lose a byte; the
    output of attention is kept in bf16, and in FP8 too."""
    run = layer_of_eights
    saved, kept = (memory.stored_activation_bytes(one, recompute_attention=False) for one in (run, with_fp8(run)))
    assert saved - kept == memory.rank_positions(run) * (2 * 32 + 64 - 64)


@pytest.fixture
def layer_of_eights(small_run) -> RunConfig:
    """SMALL with sizes that FP8 takes."""
    run = small_run()
    return replace(run, model=replace(run.model, hidden=32, ffn=64))

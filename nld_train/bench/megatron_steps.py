"""Megatron's own training step for `nld bench step`: ours at both stages, Megatron-Bridge's GPT, and Megatron-Bridge's
own implementation of the joint objective, DGPTStep on NemotronLabsDiffusion. megatron_rank.py says when to import this.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.timers import Timers
from megatron.core.utils import StragglerDetector
from torch import Tensor

from nld_train.bench.measure import Alternative, Step
from nld_train.bench.step_bench import (
    AR,
    BRIDGE_AR,
    BRIDGE_JOINT,
    JOINT,
    READY,
    endless_batches,
    random_rows,
    useful_step_flops,
    with_ar_objective,
)
from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.model.provider import model_provider
from nld_train.objectives.choose import objective_of
from nld_train.train.bridge_config import data_parallel_config, optimizer_config
from nld_train.train.forward_step import MegatronForwards

ForwardStepFunction = Callable[[Any, torch.nn.Module], tuple[Any, Callable]]


def megatron_alternatives(run: RunConfig, device: torch.device) -> list[Alternative]:
    """Ours and Megatron-Bridge's, at both stages. The joint steps come first, because time is cut from the end."""
    stage1 = with_ar_objective(run)
    return [
        Alternative(JOINT, lambda: our_megatron_step(run, device), useful_step_flops(run)),
        Alternative(BRIDGE_JOINT, lambda: _bridge_joint_step(run, device), useful_step_flops(run)),
        Alternative(AR, lambda: our_megatron_step(stage1, device), useful_step_flops(stage1)),
        Alternative(BRIDGE_AR, lambda: bridge_ar_step(stage1, device), useful_step_flops(stage1)),
    ]


def our_megatron_step(run: RunConfig, device: torch.device) -> Step:
    """Our model and our loss in Megatron's training step."""
    batches, objective = endless_batches(run, device), objective_of(run)

    def forward_step(_: Any, model: torch.nn.Module) -> tuple[Tensor, Callable]:
        batch = next(batches).to(torch.cuda.current_device())
        return objective.forward_loss(MegatronForwards(model), batch)

    return _training_step(model_provider(run), run, forward_step)


def bridge_ar_step(run: RunConfig, device: torch.device) -> Step:
    """Megatron-Bridge's GPT model and loss on the same rows and shape."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training.losses import masked_next_token_loss

    theirs = GPTModelProvider(**_bridge_settings(GPTModelProvider, run))
    theirs.transformer_layer_spec = lambda config, vp_stage=None: get_gpt_decoder_block_spec(
        config, use_transformer_engine=device.type == "cuda", normalization="RMSNorm", vp_stage=vp_stage
    )
    batches = bridge_batches(run, device)

    def forward_step(_: Any, model: torch.nn.Module) -> tuple[Tensor, partial]:
        batch = {name: None if part is None else part.to(device) for name, part in next(batches).items()}
        nll = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        return nll, partial(masked_next_token_loss, batch["loss_mask"], check_for_nan_in_loss=False)

    return _training_step(theirs, run, forward_step)


def _bridge_joint_step(run: RunConfig, device: torch.device) -> Step:
    """Megatron-Bridge's NemotronLabsDiffusion as its recipe sets it up, at the same shape."""
    if device.type != "cuda":
        raise UserError("its flex_attention has no backward on the CPU", "a GPU", "measure it on one")
    theirs = _bridge_joint_provider(run)
    theirs.cross_entropy_loss_fusion, theirs.cross_entropy_fusion_impl = True, "te"
    return _training_step(theirs, run, _bridge_joint_forward(run, device))


def _bridge_joint_provider(run: RunConfig) -> Any:
    """Megatron-Bridge's provider of the model, at the run's shape."""
    from megatron.bridge.diffusion.models.nemotron_labs_diffusion.nemotron_labs_diffusion_provider import (
        NemotronLabsDiffusionModelProvider as Theirs,
    )
    from transformers import Ministral3Config

    rope, model = run.model.rope, run.model
    settings = _bridge_settings(Theirs, run)
    settings |= {"position_embedding_type": "none", "seq_length": run.data.sequence_length}
    theirs = Theirs(**settings)
    theirs.block_size, theirs.mask_token_id = run.diffusion.block_size, run.diffusion.mask_token_id
    theirs.dlm_loss_weight = run.diffusion.alpha
    theirs.hf_config = Ministral3Config(
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        head_dim=model.head_dim,
        max_position_embeddings=rope.max_position,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_max_position,
            "max_position_embeddings": rope.max_position,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
            "llama_4_scaling_beta": rope.query_scale_beta,
        },
    )
    return theirs


@dataclass
class _BridgeState:
    """As much of Megatron-Bridge's GlobalState as its step reads."""

    timers: Timers
    straggler_timer: StragglerDetector
    cfg: SimpleNamespace


def _bridge_joint_forward(run: RunConfig, device: torch.device) -> ForwardStepFunction:
    """DGPTStep, with the checks that its own configuration has on."""
    from megatron.bridge.diffusion.models.common.dgpt_step import DGPTStep

    checks = SimpleNamespace(check_for_nan_in_loss=True, check_for_spiky_loss=False)
    settings = SimpleNamespace(
        rerun_state_machine=checks, dataset=SimpleNamespace(skip_getting_attention_mask_from_dataset=True)
    )
    state = _BridgeState(Timers(log_level=0, log_option="minmax"), StragglerDetector(), settings)
    theirs, batches = DGPTStep(), bridge_batches(run, device)
    return lambda _, model: theirs(state, batches, model)


def _bridge_settings(theirs: type, run: RunConfig) -> dict[str, Any]:
    """Our provider's values for the fields that Megatron-Bridge's provider has too; it keeps its own layers."""
    ours, fields = model_provider(run), theirs.__dataclass_fields__
    shared = {name for name, entry in fields.items() if entry.init and name in ours.__dataclass_fields__}
    kept = shared - {"transformer_layer_spec", "attention_backend"}
    return {name: vars(ours)[name] for name in kept if name in vars(ours)}


def bridge_batches(run: RunConfig, device: torch.device) -> Iterator[dict[str, Tensor | None]]:
    """The rows of `endless_batches` as Megatron-Bridge's loader gives them: tensors [B, L], attention_mask None."""

    def made(number: int) -> dict[str, Tensor | None]:
        tokens = torch.stack([row.tokens for row in random_rows(run, number)])
        length = run.data.sequence_length
        batch = {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(len(tokens), length),
            "position_ids": torch.arange(length).expand(len(tokens), -1).contiguous(),
        }
        if device.type == "cuda":
            batch = {name: part.pin_memory() for name, part in batch.items()}
        return {**batch, "attention_mask": None}

    return cycle([made(number) for number in range(READY)])


def _training_step(maker: Any, run: RunConfig, forward_step: ForwardStepFunction) -> Step:
    """A whole training step: Megatron's schedule, gradient buffers and optimizer around a forward step."""
    maker.finalize()
    # One rank has nothing to send, and so nothing to hide behind computation.
    settings = replace(data_parallel_config(run), overlap_grad_reduce=False, overlap_param_gather=False)
    model = maker.provide_distributed_model(ddp_config=settings)
    maker.finalize_model_grads_func = finalize_model_grads
    adam = optimizer_config(run)
    adam.finalize()
    update = get_megatron_optimizer(adam, model)
    schedule = get_forward_backward_func()

    def step() -> None:
        for chunk in model:
            chunk.zero_grad_buffer()
        update.zero_grad()
        schedule(
            forward_step_func=forward_step,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=maker.seq_length,
            micro_batch_size=run.train.micro_batch,
            forward_only=False,
        )
        update.step()

    return step

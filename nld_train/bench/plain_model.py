"""A training step of the model in plain torch layers, for machines without Megatron: with our attention and LM-head
loss, and with the usual ones.

Weights and Adam's moments are bf16, without float32 copies. So it shows how the two ways compare and roughly what a
step costs; the product's own step is Megatron's.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from nld_train.attention.backends import AttentionFunction, BackendRequest, choose_backend
from nld_train.attention.compiled import compile_on_gpu
from nld_train.bench.measure import Alternative, Step
from nld_train.bench.step_bench import AR, JOINT, NAIVE, endless_batches, useful_step_flops, with_ar_objective
from nld_train.config import ModelConfig, RunConfig
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions
from nld_train.loss.cross_entropy import cross_entropy
from nld_train.loss.lm_head import head_nll
from nld_train.loss.objective import objective_value
from nld_train.loss.terms import loss_terms
from nld_train.types import Batch

Angles = tuple[Tensor, Tensor]  # cosine and sine, [S, D]


def plain_steps(run: RunConfig, device: torch.device) -> list[Alternative]:
    """Our step at both stages, and the usual way at the joint one."""
    joint, ar = partial(_ready_step, run, device), partial(_ready_step, with_ar_objective(run), device)
    return [
        Alternative(JOINT, lambda: joint(naive=False), useful_step_flops(run)),
        Alternative(NAIVE, lambda: joint(naive=True), useful_step_flops(run)),
        Alternative(AR, lambda: ar(naive=False), useful_step_flops(with_ar_objective(run))),
    ]


def _ready_step(run: RunConfig, device: torch.device, *, naive: bool) -> Step:
    """Build a model with its optimizer, and return the step that trains it."""
    network = PlainNetwork(run, device, naive)
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.optimizer.lr, fused=True)
    batches = endless_batches(run, device)

    def step() -> None:
        micro_batch_objective(network, next(batches).to(device), run, naive).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def micro_batch_objective(network: "PlainNetwork", batch: Batch, run: RunConfig, naive: bool) -> Tensor:
    """The objective of one micro-batch, scalar []: the same number, whether `naive` or not."""
    nll = _every_nll(network, batch) if naive else _needed_nll(network, batch)
    ar_nll, diffusion_nll = nll.split([batch.ar_targets.numel(), batch.diffusion_targets.numel()])
    return objective_value([loss_terms(ar_nll, diffusion_nll, batch)], run.diffusion.alpha, run.diffusion.ar_weight)


def _needed_nll(network: "PlainNetwork", batch: Batch) -> Tensor:
    """Cross-entropy [R] from the LM-head rows that have a loss, without ever holding all logits."""
    hidden = network(batch.input_ids).flatten(0, 1).index_select(0, batch.head_positions)
    return head_nll(hidden, network.head, batch.head_targets)


def _every_nll(network: "PlainNetwork", batch: Batch) -> Tensor:
    """Cross-entropy [R] picked from the cross-entropy of every position, by the logits [B * S, V] of all of them."""
    hidden = network(batch.input_ids).flatten(0, 1)
    targets = batch.input_ids.flatten().scatter(0, batch.head_positions, batch.head_targets)
    return cross_entropy(hidden @ network.head.T, targets)[batch.head_positions]


def _with_repeated_heads(attend: AttentionFunction) -> AttentionFunction:
    """The backend, given a key head for every query head."""

    def attend_repeated(query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        return attend(query, key, value, spec, scale)

    return attend_repeated


class PlainNetwork(nn.Module):
    """A network from ids to normalised last hidden states. Its LM head is a weight of its own, [V, E]."""

    def __init__(self, run: RunConfig, device: torch.device, naive: bool) -> None:
        super().__init__()
        model, dtype = run.model, torch.bfloat16 if run.train.precision == "bf16" else torch.float32
        self.layout = RowLayout(run.data.sequence_length, run.diffusion.block_size, run.diffusion.dual)
        # On a GPU the usual way has one fused kernel that takes such a mask: flex_attention.
        name = "flex" if naive and device.type == "cuda" else run.train.attention
        attend = choose_backend(BackendRequest(name, device.type, dtype, model.head_dim, training=True))
        made = partial(_random_weight, dtype=dtype, device=device, std=model.init_std)
        self.embedding, self.head = made(model.vocab_size, model.hidden), made(model.vocab_size, model.hidden)
        self.norm = nn.Parameter(torch.ones(model.hidden, dtype=dtype, device=device))
        chosen = _with_repeated_heads(attend) if naive else attend
        self.layers = nn.ModuleList(PlainLayer(model, self.layout, chosen, made) for _ in range(model.layers))
        self.epsilon = model.norm_eps
        frequencies = model.rope.theta ** (-torch.arange(0, model.head_dim, 2, device=device) / model.head_dim)
        angles = torch.outer(rotary_positions(self.layout, device=device), frequencies).repeat(1, 2)
        self.angles = angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, S] int64 -> hidden states [B, S, E]."""
        x = functional.embedding(ids, self.embedding)
        for layer in self.layers:
            x = layer(x, self.angles)
        return functional.rms_norm(x, (x.shape[-1],), self.norm, self.epsilon)


class PlainLayer(nn.Module):
    """A decoder layer: pre-norm attention, then pre-norm SwiGLU."""

    def __init__(
        self, model: ModelConfig, layout: RowLayout, attend: AttentionFunction, made: Callable[..., nn.Parameter]
    ) -> None:
        super().__init__()
        self.model, self.spec, self.attend = model, MaskSpec(layout), attend
        width = model.heads * model.head_dim
        self.qkv = made(width + 2 * model.kv_heads * model.head_dim, model.hidden)
        self.out, self.gate_up, self.down = (
            made(model.hidden, width),
            made(2 * model.ffn, model.hidden),
            made(model.hidden, model.ffn),
        )
        self.norms = nn.ParameterList(torch.ones(model.hidden).to(self.qkv) for _ in range(2))

    def forward(self, x: Tensor, angles: Angles) -> Tensor:
        """x [B, S, E] -> [B, S, E]; angles: cosine and sine, [S, D] each."""
        before, after = self.norms
        x = x + self.attention(functional.rms_norm(x, (x.shape[-1],), before, self.model.norm_eps), angles)
        normed = functional.rms_norm(x, (x.shape[-1],), after, self.model.norm_eps)
        activation = compile_on_gpu(_swiglu, x.device.type, dynamic=False)
        return x + functional.linear(activation(functional.linear(normed, self.gate_up)), self.down)

    def attention(self, x: Tensor, angles: Angles) -> Tensor:
        """Self-attention of normalised x [B, S, E], projected back to [B, S, E]."""
        heads, groups = self.model.heads, self.model.kv_heads
        projected = functional.linear(x, self.qkv).unflatten(-1, (heads + 2 * groups, -1)).transpose(1, 2)
        query, key, value = projected.split([heads, groups, groups], 1)
        seen = self.attend(
            _rotate_halves(query, *angles), _rotate_halves(key, *angles), value, self.spec, self.model.head_dim**-0.5
        )
        return functional.linear(seen.transpose(1, 2).flatten(2), self.out)


def _rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [B, H, S, D], with cosine and sine [S, D]. Plain frequencies cost the same as YaRN's."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


def _swiglu(x: Tensor) -> Tensor:
    """[gate | up] [..., 2F] -> silu(gate) * up [..., F]."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def _random_weight(rows: int, columns: int, *, dtype: torch.dtype, device: torch.device, std: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, device=device).mul_(std).to(dtype))

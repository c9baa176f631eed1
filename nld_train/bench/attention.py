"""Attention alone, forward and backward: our backends against what else one would take, in the same run.

The ceiling is plain causal attention of two passes of L, by the fastest kernel there is: the dual stream's mask allows
as many pairs. Packed documents have fewer, in shorter stretches: there the ceiling is one of speed alone.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nld_train.attention.backends import BACKENDS, choose_backend
from nld_train.bench.inputs import AttentionInputs, AttentionShape, draw_attention_inputs
from nld_train.bench.measure import Alternative, Effort, Measurement, Step, measure_in_turns
from nld_train.bench.outcome import (
    NOTHING,
    BenchOutcome,
    bench_environment,
    mebibytes_text,
    milliseconds_text,
    refusal_lines,
    result_figures,
    teraflops_text,
    time_ratio,
)
from nld_train.bench.profile import profile_lines
from nld_train.dual_stream.context_shard import WHOLE
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.errors import UserError
from nld_train.plan.flops import PASSES

ORACLE = "reference"  # dense in high precision: what results are compared with, no alternative
OURS, CAUSAL = "ours: ", "causal: "
HEAD = ["attention", "ms (fastest to slowest)", "TFLOP/s, useful", "share of ceiling", "time of flex / its", "peak MiB"]


def bench_attention(
    shape: AttentionShape, dtype: torch.dtype, effort: Effort, device: torch.device, profiled: bool = False
) -> BenchOutcome:
    """Measure every way at one shape. profiled: also show where the time of our fastest goes."""
    generator = torch.Generator(device).manual_seed(1)
    dual, causal = (
        draw_attention_inputs(shape, dtype, device, generator, positions=n) for n in (None, 2 * shape.length)
    )
    # What is cut where time is short is cut from the end; Megatron-Bridge's kernel is tuned for minutes.
    todo = [*causal_ceilings(shape, causal), *our_backends(shape, dual), *other_implementations(shape, dual)]
    results = measure_in_turns(todo, effort, device)
    found = _attention_outcome(f"{shape}, {dtype}", results, device)
    if profiled:
        fastest = max((result for result in results if _is_ours(result)), key=lambda result: result.rate, default=None)
        found.notes += profile_lines(todo, fastest, device)
    return found


def _is_ours(result: Measurement) -> bool:
    return result.name.startswith(OURS) and bool(result.seconds)


def _attention_outcome(subject: str, results: Sequence[Measurement], device: torch.device) -> BenchOutcome:
    ran = [result for result in results if result.seconds]
    limits = [result for result in ran if result.name.startswith(CAUSAL)]
    ceiling = max((limit.rate for limit in limits), default=None)
    flex = next((result for result in ran if result.name == f"{OURS}flex"), None)
    rows = [
        [
            result.name,
            milliseconds_text(result),
            teraflops_text(result),
            f"{result.rate / ceiling:.0%}" if ceiling and result.seconds else NOTHING,
            f"{time_ratio(flex, result):.2f}" if flex and result.seconds else NOTHING,
            mebibytes_text(result),
        ]
        for result in results
    ]
    notes = ["TFLOP/s count three forwards of the pairs that see each other. Peak: above inputs, masks included."]
    figures = {"results": result_figures(results), "ceiling": ceiling}
    return BenchOutcome(
        "attention", subject, HEAD, rows, notes + refusal_lines(results), figures, environment=bench_environment(device)
    )


def our_backends(shape: AttentionShape, inputs: AttentionInputs) -> list[Alternative]:
    """Every backend by name; one that refuses these settings says so."""
    useful = _useful_attention_flops(shape, inputs)

    def prepared(name: str) -> Step:
        query = inputs.query
        attend = choose_backend(
            name, query.device.type, query.dtype, query.shape[-1], training=True, packed=shape.packed
        )
        return lambda: inputs.gradients(attend(*inputs.leaves, shape.layout, inputs.scale, inputs.documents))

    return [
        Alternative(f"{OURS}{name}", lambda name=name: prepared(name), useful)  # type: ignore[misc]
        for name in BACKENDS
        if name != ORACLE
    ]


def other_implementations(shape: AttentionShape, inputs: AttentionInputs) -> list[Alternative]:
    """What one would write first, and what Megatron-Bridge installs."""
    useful = _useful_attention_flops(shape, inputs)
    return [
        Alternative("dense SDPA with mask", lambda: dense_sdpa_step(shape, inputs), useful),
        Alternative("Megatron-Bridge's NemotronLabsDiffusion", lambda: _bridge_attention_step(shape, inputs), useful),
    ]


def dense_sdpa_step(shape: AttentionShape, inputs: AttentionInputs) -> Step:
    """Keys and values repeated for every query head, which the kernels that take a mask want."""
    device, documents = inputs.query.device, inputs.documents
    table = visible_table(shape.layout, None if documents is None else documents.to(device), device)
    mask = table[:, None] if shape.packed else table

    def step() -> tuple[Tensor, ...]:
        key, value = (part.repeat_interleave(shape.heads // shape.kv_heads, 1) for part in inputs.leaves[1:])
        output = scaled_dot_product_attention(inputs.query, key, value, attn_mask=mask, scale=inputs.scale)
        return inputs.gradients(output)

    return step


def _bridge_attention_step(shape: AttentionShape, inputs: AttentionInputs) -> Step:
    """The attention of Megatron-Bridge's own implementation of the model, without its rotary embedding."""
    if shape.packed:
        raise UserError("packed documents, which it does not keep apart", "rows of one", "leave out --documents")
    if find_spec("megatron") is None:
        raise UserError("no Megatron here", "an environment with megatron-bridge", "run it where training runs")
    if inputs.query.device.type != "cuda":
        raise UserError("flex_attention has no backward on the CPU", "a GPU", "measure it on one")
    from megatron.bridge.diffusion.common.dllm import compute_block_mask  # type: ignore[import-untyped]
    from megatron.bridge.diffusion.models.common import nemotron_labs_diffusion_attention as theirs  # type: ignore[import-untyped]

    mask = compute_block_mask(block_size=shape.block_size, max_seq_length=shape.length)
    repeats = shape.heads // shape.kv_heads

    def step() -> tuple[Tensor, ...]:
        key, value = (theirs.repeat_kv(part, repeats) for part in inputs.leaves[1:])
        return inputs.gradients(theirs.fused_flex_attention(inputs.query, key, value, block_mask=mask))

    return step


def causal_ceilings(shape: AttentionShape, inputs: AttentionInputs) -> list[Alternative]:
    """Plain causal attention over two rows of L."""
    useful = attention_pair_flops(shape, 2 * RowLayout(shape.length, shape.block_size, dual=False).visible_pairs)
    query, key, value, cotangent = (halves_as_rows(part) for part in (*inputs.leaves, inputs.cotangent))
    rows = AttentionInputs(query, key, value, cotangent, inputs.scale)

    each = repeat_key_heads(rows)

    def torch_causal(kernels: Callable[[], AbstractContextManager], given: AttentionInputs = rows) -> Step:
        grouped = given.query.shape[1] != given.key.shape[1]

        def step() -> tuple[Tensor, ...]:
            with kernels():
                output = scaled_dot_product_attention(
                    *given.leaves, is_causal=True, scale=given.scale, enable_gqa=grouped
                )
            return given.gradients(output)

        return step

    return [
        Alternative(f"{CAUSAL}torch's choice", lambda: torch_causal(nullcontext), useful),
        Alternative(f"{CAUSAL}FlashAttention", lambda: torch_causal(_only_kernel(SDPBackend.FLASH_ATTENTION)), useful),
        Alternative(f"{CAUSAL}cuDNN", lambda: torch_causal(_only_kernel(SDPBackend.CUDNN_ATTENTION)), useful),
        Alternative(
            f"{CAUSAL}cuDNN, 1 key head a head",
            lambda: torch_causal(_only_kernel(SDPBackend.CUDNN_ATTENTION), each),
            useful,
        ),
        Alternative(f"{CAUSAL}Transformer Engine", lambda: _te_causal_step(shape, rows), useful),
    ]


def repeat_key_heads(rows: AttentionInputs) -> AttentionInputs:
    """The same with keys and values repeated beforehand, for kernels that want as many of them as queries."""
    repeats = rows.query.shape[1] // rows.key.shape[1]
    key, value = (part.detach().repeat_interleave(repeats, 1).requires_grad_() for part in (rows.key, rows.value))
    return AttentionInputs(rows.query, key, value, rows.cotangent, rows.scale)


def _only_kernel(kernel: SDPBackend) -> Callable[[], AbstractContextManager]:
    return lambda: sdpa_kernel(kernel)


def halves_as_rows(part: Tensor) -> Tensor:
    """[B, H, 2L, D] as twice as many rows of L: [2B, H, L, D], positions apart as Megatron has them."""
    rows = torch.cat(part.detach().chunk(2, 2), 0).permute(2, 0, 1, 3).contiguous()
    return rows.permute(1, 2, 0, 3).requires_grad_(part.requires_grad)


def _te_causal_step(shape: AttentionShape, rows: AttentionInputs) -> Step:
    """Its DotProductAttention on rows as [L, 2B, H, D]."""
    if rows.query.device.type != "cuda":
        raise UserError("Transformer Engine's attention needs a GPU", "a GPU", "measure it on one")
    from transformer_engine.pytorch import DotProductAttention  # type: ignore[import-untyped]

    attend = DotProductAttention(
        shape.heads,
        shape.head_dim,
        num_gqa_groups=shape.kv_heads,
        attention_dropout=0.0,
        qkv_format="sbhd",
        attn_mask_type="causal",
        softmax_scale=rows.scale,
    )

    def step() -> tuple[Tensor, ...]:
        output = attend(*(part.permute(2, 0, 1, 3) for part in rows.leaves))  # [L, 2B, H * D]
        by_head = output.unflatten(-1, (shape.heads, shape.head_dim)).permute(1, 2, 0, 3)
        return rows.gradients(by_head)

    return step


def _useful_attention_flops(shape: AttentionShape, inputs: AttentionInputs) -> float:
    """Of the pairs that see each other."""
    layout = shape.layout
    lengths = MaskSpec.of(layout, WHOLE, inputs.documents).documents or ((shape.length,),) * shape.rows
    pairs = sum(replace(layout, length=length).visible_pairs for row in lengths for length in row)
    return attention_pair_flops(shape, pairs / shape.rows)


def attention_pair_flops(shape: AttentionShape, pairs: float) -> float:
    """Forward and backward, of pairs of one row and head. What a kernel computes again is not useful."""
    return PASSES * 2 * 2 * float(pairs) * shape.head_dim * shape.heads * shape.rows

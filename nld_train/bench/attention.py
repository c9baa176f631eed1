"""Attention alone, forward and backward: our backends against the other ways to compute it, in the same run.

The ceiling is plain causal attention over two rows of L, by the fastest kernel there is, because the dual stream's mask
allows as many pairs. Packed documents allow fewer, in shorter stretches; there the ceiling holds for FLOP/s, not for
time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nld_train.attention.backends import BACKENDS, BackendRequest, choose_backend
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
from nld_train.config import AttentionBackend
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.dual_stream.visibility import visible_table
from nld_train.errors import UserError
from nld_train.plan.flops import PASSES

ORACLE = "reference"  # dense and precise: results are compared with it, and its time is not measured
OURS, CAUSAL = "ours: ", "causal: "
HEAD = ["attention", "ms (fastest to slowest)", "TFLOP/s, useful", "share of ceiling", "time of flex / its", "peak MiB"]


def bench_attention(
    shape: AttentionShape, dtype: torch.dtype, effort: Effort, device: torch.device, profiled: bool = False
) -> BenchOutcome:
    """Measure every way at one shape. profiled: also show which kernels our fastest backend spends its time in."""
    generator = torch.Generator(device).manual_seed(1)
    dual, causal = (
        draw_attention_inputs(shape, dtype, device, generator, positions=n) for n in (None, 2 * shape.length)
    )
    # Time is cut from the end of the list, and Megatron-Bridge's kernel takes minutes to tune.
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
    """Every backend but the oracle; one that refuses these settings says so when it is prepared."""
    useful = _useful_attention_flops(shape, inputs)

    def prepared(name: AttentionBackend) -> Step:
        query = inputs.query
        attend = choose_backend(
            BackendRequest(name, query.device.type, query.dtype, query.shape[-1], training=True, packed=shape.packed)
        )
        # Made in every step, as core attention makes it: with packed documents no two steps have the same one.
        return lambda: inputs.gradients(
            attend(*inputs.leaves, MaskSpec.from_documents(shape.layout, inputs.documents), inputs.scale)
        )

    return [
        Alternative(f"{OURS}{name}", lambda name=name: prepared(name), useful)  # type: ignore[misc]
        for name in BACKENDS
        if name != ORACLE
    ]


def other_implementations(shape: AttentionShape, inputs: AttentionInputs) -> list[Alternative]:
    """The way one would write first, and the one that Megatron-Bridge installs."""
    useful = _useful_attention_flops(shape, inputs)
    return [
        Alternative("dense SDPA with mask", lambda: dense_sdpa_step(shape, inputs), useful),
        Alternative("Megatron-Bridge's NemotronLabsDiffusion", lambda: _bridge_attention_step(shape, inputs), useful),
    ]


def dense_sdpa_step(shape: AttentionShape, inputs: AttentionInputs) -> Step:
    """SDPA with the dense table. Its kernels that take a mask want keys and values repeated for every query head."""
    device, documents = inputs.query.device, inputs.documents
    table = visible_table(shape.layout, None if documents is None else documents.to(device), device=device)
    mask = table[:, None] if shape.packed else table

    def step() -> tuple[Tensor, ...]:
        key, value = (part.repeat_interleave(shape.heads // shape.kv_heads, 1) for part in inputs.leaves[1:])
        output = scaled_dot_product_attention(inputs.query, key, value, attn_mask=mask, scale=inputs.scale)
        return inputs.gradients(output)

    return step


def _bridge_attention_step(shape: AttentionShape, inputs: AttentionInputs) -> Step:
    """The attention of Megatron-Bridge's own implementation of this model, without its rotary embedding."""
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
    """Plain causal attention over two rows of L, by every kernel that there is for it."""
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
    """The inputs with keys and values repeated, [B, H, S, D], for kernels that want a key head for each query head."""
    repeats = rows.query.shape[1] // rows.key.shape[1]
    key, value = (part.detach().repeat_interleave(repeats, 1).requires_grad_() for part in (rows.key, rows.value))
    return AttentionInputs(rows.query, key, value, rows.cotangent, rows.scale)


def _only_kernel(kernel: SDPBackend) -> Callable[[], AbstractContextManager]:
    return lambda: sdpa_kernel(kernel)


def halves_as_rows(part: Tensor) -> Tensor:
    """[B, H, 2L, D] as twice as many rows of L: [2B, H, L, D], a view of [L, 2B, H, D], as Megatron lays rows out."""
    rows = torch.cat(part.detach().chunk(2, 2), 0).permute(2, 0, 1, 3).contiguous()
    return rows.permute(1, 2, 0, 3).requires_grad_(part.requires_grad)


def _te_causal_step(shape: AttentionShape, rows: AttentionInputs) -> Step:
    """Transformer Engine's DotProductAttention on the rows as [L, 2B, H, D]."""
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
    """FLOPs of the visible pairs, document by document."""
    layout = shape.layout
    lengths = MaskSpec.from_documents(layout, inputs.documents).documents or ((shape.length,),) * shape.rows
    pairs = sum(replace(layout, length=length).visible_pairs for row in lengths for length in row)
    return attention_pair_flops(shape, pairs / shape.rows)


def attention_pair_flops(shape: AttentionShape, pairs: float) -> float:
    """FLOPs of a forward and a backward over `pairs` pairs of each row and head.

    A pair costs two products of head_dim in the forward, and the backward counts twice. What a kernel computes again is
    not useful, so it is not counted.
    """
    return PASSES * 2 * 2 * float(pairs) * shape.head_dim * shape.heads * shape.rows

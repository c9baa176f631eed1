"""What makes this process look like a rank on a GPU: shapes in place of kernels, facts in place of a device.

Tensors are fake: they have shapes, types and storages, and no memory. All Python runs as on a GPU: Transformer Engine's
own layers, Megatron's gradient buffers, schedule and optimizer, our model, masks and losses. The stand-ins replace the
compiled kernels below them, and allocate what those return:

- Transformer Engine's matrix products, RMSNorm and rotary embedding, and Megatron's fused SwiGLU;
- flex_attention: output and log-sum-exp, kept with query, key and value; backward: three gradients and one number for
  each query. Its block mask, a few MB, is left out;
- torch's AdamW stands for Transformer Engine's fused one (train/cpu_runtime.py): the same two moments.

They are for a process that does nothing else. Import Megatron after `install_cpu_runtime` and before them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from nld_train.dual_stream.mask_spec import MaskSpec

IS_CUDA = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]
H100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="H100", total_memory=int(85e9))


class _SaysCuda(TorchFunctionMode):
    """Every tensor says that it is on a GPU, which Transformer Engine's layers ask for."""

    def __torch_function__(self, function: Callable, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function == IS_CUDA:
            return True
        return function(*args, **(kwargs or {}))


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within it tensors are fake and say that they are on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), _SaysCuda():
        yield


def install_stand_ins() -> None:
    """Replace kernels and facts, for the life of the process."""
    _state_facts()
    _replace_kernels()
    _let_modules_be()
    _replace_group_talk()
    _read_documents_outside()


def _state_facts() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda *_: H100
    torch.cuda.get_device_capability = lambda *_: (H100.major, H100.minor)
    torch.cuda.is_current_stream_capturing = lambda: False
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    import nld_train.model.drafter_adapter as drafter_adapter

    drafter_adapter._initialize_adapter = lambda *_: None  # it looks at values, and fake weights have none
    CudaRNGStatesTracker.fork = lambda *_: nullcontext()  # it compares states, and fake ones have no values


def _replace_kernels() -> None:
    """Under every name by which a module has bound them."""
    import megatron.core.fusions.fused_bias_swiglu as swiglu
    import transformer_engine_torch as kernels

    import nld_train.model.core_attention as core_attention

    stand_ins = {
        "generic_gemm": _gemm,
        "rmsnorm_fwd": _rmsnorm,
        "rmsnorm_bwd": _rmsnorm_gradients,
        "fused_rope_forward": _rotated,
        "fused_rope_backward": _rotated,
    }
    originals = {id(vars(kernels)[name]): stand_in for name, stand_in in stand_ins.items()}
    for path in [path for path in sys.modules if path.startswith("transformer_engine")]:
        for name, value in list(vars(sys.modules[path]).items()):
            if id(value) in originals:
                setattr(sys.modules[path], name, originals[id(value)])
    swiglu.swiglu = lambda both: both.new_empty((*both.shape[:-1], both.shape[-1] // 2))
    swiglu.swiglu_back = lambda _, both: torch.empty_like(both)
    core_attention.choose_backend = lambda _: _attend


def _gemm(a: Tensor, transposed_a: bool, b: Tensor, transposed_b: bool, out: Tensor | None, *_: Any, **__: Any) -> Any:
    """cuBLAS's column-major product: with row-major tensors [.., K] it is b' a'."""
    if out is None:
        columns = a.flatten(0, -2).shape[0 if transposed_a else 1]
        rows = (b.shape[-1],) if transposed_b else b.shape[:-1]
        out = a.new_empty((*rows, columns))
    return out, None, None, None


def _rmsnorm(x: Tensor, _weight: Tensor, _eps: float, out: Tensor | None, *_: Any) -> tuple[Tensor, None, Tensor]:
    statistics = x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
    return torch.empty_like(x) if out is None else out, None, statistics


def _rmsnorm_gradients(_gradient: Tensor, x: Tensor, _: Tensor, weight: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _rotated(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> tuple[Tensor, ...]:
        *inputs, _output, lse = ctx.saved_tensors
        row_sums = torch.empty_like(lse)  # of output * gradient
        gradients = tuple(map(torch.empty_like, inputs))
        del row_sums
        return gradients


def _attend(query: Tensor, key: Tensor, value: Tensor, _spec: MaskSpec, _scale: float) -> Tensor:
    output: Tensor = _Attention.apply(query, key, value)
    return output


def _let_modules_be() -> None:
    """torch moves a module's fake weights by swapping them, and refuses where somebody watches one. Weights are made
    where and as they shall be; buffers may change their type."""

    def apply(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
        for weight in module.parameters():
            assert function(weight).dtype == weight.dtype, f"a weight is made as {weight.dtype} and cast then"
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = function(buffer)
        return module

    torch.nn.Module._apply = apply  # type: ignore[method-assign]


def _replace_group_talk() -> None:
    """Ranks that tell each other Python objects: here all have said the same."""

    def say_the_same(said: list, own: Any, *_: Any, **__: Any) -> None:
        said[:] = [own] * len(said)

    torch.distributed.all_gather_object = say_the_same


def _read_documents_outside() -> None:
    """Document numbers are read on the host, where they are real."""
    read = MaskSpec.from_documents

    def read_real(*args: Any) -> MaskSpec:
        with _disable_current_modes():
            return read(*args)

    MaskSpec.from_documents = staticmethod(read_real)  # type: ignore[method-assign]

"""Megatron on machines without a GPU: the same loop, model, optimizer and checkpoints, on gloo.

Megatron-Core and Megatron-Bridge assume CUDA in many places, but need it in few. `install_cpu_runtime` maps those few
to the CPU, once per process and before anything else of Megatron is imported. With a GPU it does nothing.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


@functools.cache
def install_cpu_runtime() -> None:
    """Let this process train with Megatron on its CPU. Does nothing where there is a GPU, or the second time."""
    if torch.cuda.is_available():
        return
    _replace_fused_optimizers()
    _name_cpu_the_current_device()
    _make_streams_inert()
    _report_no_device_memory()
    _map_cuda_tensors_to_cpu()
    _use_the_cpu_generator()
    _let_gloo_barrier()
    _start_without_cuda()
    _copy_before_asynchronous_saves()


def install_cpu_runtime_in_writer() -> None:
    """Install what the process needs that writes checkpoints beside the training: a device that it can name."""
    if not torch.cuda.is_available():
        _name_cpu_the_current_device()
        _make_streams_inert()
        _map_cuda_tensors_to_cpu()


def _replace_fused_optimizers() -> None:
    """Transformer Engine's optimizer kernels need CUDA; Megatron binds them by name when it is first imported."""
    import transformer_engine.pytorch.optimizers as fused

    fused.multi_tensor_applier = lambda operation, flag, lists, *rest: operation(0, flag, lists, *rest)
    fused.multi_tensor_l2norm = _l2_norm
    fused.multi_tensor_scale = _scale
    fused.multi_tensor_scale_tensor = _scale
    fused.FusedAdam = CpuAdam


class CpuAdam(torch.optim.Optimizer):
    """torch's AdamW arithmetic behind the interface of Transformer Engine's FusedAdam.

    FusedAdam counts its steps by parameter group and not by parameter, and Megatron's checkpoints hold them so. This
    one does the same, so that a run saved here resumes on GPUs, and the other way round.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
        **_: Any,
    ) -> None:
        assert adam_w_mode, "only AdamW, with decoupled weight decay"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            before = group.setdefault("step", 0)
            group["step"] = before + 1
            states = [self._moments(param) for param in params]
            adamw(
                params,
                [param.grad for param in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                max_exp_avg_sqs=[],
                state_steps=[torch.tensor(float(before)) for _ in params],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _moments(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return state


def _l2_norm(_chunk: int, _flag: Tensor, lists: Sequence[Sequence[Tensor]], *_: Any) -> tuple[Tensor, None]:
    # Summed in float32 the squares of a few million gradients lose 3e-5 of the norm. The norm itself is float32 again:
    # Megatron adds up its squares over ranks, of which one without gradients brings a float32 zero.
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in lists[0]]
    return torch.linalg.vector_norm(torch.stack(norms)).float(), None


def _scale(_chunk: int, _flag: Tensor, lists: Sequence[Sequence[Tensor]], factor: float | Tensor) -> None:
    for source, target in zip(*lists, strict=True):
        target.copy_(source * factor)


def _name_cpu_the_current_device() -> None:
    """Megatron allocates on torch.cuda.current_device(), and seeds its generators only where a device is counted."""
    torch.cuda.current_device = lambda: CPU
    torch.cuda.set_device = _nothing()
    torch.cuda.device_count = lambda: 1
    torch.cuda.synchronize = _nothing()
    torch.cuda.empty_cache = _nothing()


def _nothing() -> Callable[..., None]:
    """A function that does nothing; one of its own for every name, because torch.compile has a rule for each object."""
    return lambda *_, **__: None


class _InertStream:
    """Stands for streams and events: on the CPU everything happens in order anyway."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    wait_stream = wait_event = synchronize = record = wait = _nothing()

    def record_event(self, *_: Any) -> "_InertStream":
        return self

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: "_InertStream") -> float:
        return 0.0

    def __enter__(self) -> "_InertStream":
        return self

    def __exit__(self, *_: Any) -> None: ...


def _make_streams_inert() -> None:
    """Overlap of communication and computation asks for CUDA streams and events."""
    torch.cuda.Stream = _InertStream
    torch.cuda.Event = _InertStream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *_: _InertStream()
    torch.cuda.stream = lambda _stream: contextlib.nullcontext()


def _report_no_device_memory() -> None:
    """Megatron prints device memory while it trains."""
    torch.cuda.memory_stats = lambda *_, **__: defaultdict(int)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(torch.cuda, name, lambda *_, **__: 0)
    torch.cuda.reset_peak_memory_stats = _nothing()


class _CudaMeansCpu(TorchFunctionMode):
    """Sends every request for a CUDA device to the CPU."""

    def __torch_function__(
        self, function: Callable, _types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.cuda:
            return args[0]
        if function is Tensor.type and len(args) == 1 and not kwargs:
            # Megatron recognises parameters and gradients by this name.
            return function(*args).replace("torch.", "torch.cuda.", 1)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        if "pin_memory" in kwargs:
            kwargs = {**kwargs, "pin_memory": False}  # page-locking needs a driver
        if function is Tensor.to and len(args) > 1 and isinstance(args[1], str | torch.device):
            args = (args[0], _on_cpu(args[1]), *args[2:])
        return function(*args, **kwargs)


def _on_cpu(device: Any) -> Any:
    if device is None:
        return None
    is_cuda = isinstance(device, int) or torch.device(device).type == "cuda"
    return CPU if is_cuda else device


def _map_cuda_tensors_to_cpu() -> None:
    """Factories, moves and type names: the one place where tensors are asked onto a GPU."""
    _CudaMeansCpu().__enter__()  # for the life of the process
    torch.nn.Module.cuda = lambda self, device=None: self


def _use_the_cpu_generator() -> None:
    """Megatron saves, forks and restores the CUDA generator's state around its layers and in its checkpoints."""
    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    torch.cuda.manual_seed = torch.manual_seed
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _let_gloo_barrier() -> None:
    """Megatron names its CUDA device in barriers, which gloo refuses."""
    barrier = torch.distributed.barrier
    torch.distributed.barrier = lambda group=None, async_op=False, device_ids=None: barrier(group, async_op)


def _start_without_cuda() -> None:
    """Megatron-Bridge asserts a GPU at start and warms up CUDA fusions."""
    import megatron.bridge.training.setup as setup

    setup.initialize_megatron = functools.partial(setup.initialize_megatron, allow_no_cuda=True)
    setup.set_jit_fusion_options = _nothing()


def _copy_before_asynchronous_saves() -> None:
    """The writer of asynchronous saves copies tensors off a GPU before training goes on. A CPU's it would share
    with the training, which changes them while they are written."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    save = TorchDistSaveShardedStrategy.async_save

    def async_save(self: Any, state: ShardedStateDict, folder: Any, async_strategy: str = "nvrx") -> Any:
        for entry in nested_values(state):
            if async_strategy == "nvrx" and isinstance(entry, ShardedTensor) and entry.data is not None:
                entry.data = entry.data.detach().clone()
        return save(self, state, folder, async_strategy)

    TorchDistSaveShardedStrategy.async_save = async_save

"""Which attention runs where: one record per backend, one choice, refused with the reason where it cannot work."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from nld_train.attention import cudnn_flex, flex, reference, sdpa
from nld_train.attention.fused import fa3, te
from nld_train.config import AttentionBackend, RunConfig, require, require_choice
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.errors import UserError

logger = logging.getLogger(__name__)

# What "auto" tries, best first, and why. On GPUs benchmarks/gpu.sh is to find the order. It has not run on one yet: so
# far it is the backend with the least that is new in it.
AUTO: dict[str, tuple[AttentionBackend, ...]] = {"cuda": ("flex",), "cpu": ("sdpa",)}
WHY = {"cuda": "none has been measured on a GPU yet", "cpu": "flex_attention has no backward there"}
HALF_DTYPES = (torch.float16, torch.bfloat16)


class AttentionFunction(Protocol):
    """The signature of every backend."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, spec: MaskSpec, scale: float) -> Tensor:
        """softmax(scale * q k^T over the keys that `spec` says are visible) v.

        query [B, H, S/c, D] of the positions `spec.shard.queries`; key, value [B, G, K, D] of the positions
        `spec.shard.keys`. On one context rank both are all S positions. Returns: [B, H, S/c, D].
        """
        ...


@dataclass(frozen=True)
class BackendRequest:
    """What is asked of a backend, by its name or "auto"."""

    name: AttentionBackend
    device: str
    dtype: torch.dtype
    head_dim: int
    training: bool
    packed: bool = False  # rows of several documents
    context_ranks: int = 1
    images: bool = False  # rows with tokens that have no noisy copy


Check = Callable[[BackendRequest], None]  # raises UserError, with the reason, for what the backend cannot do


@dataclass(frozen=True)
class Backend:
    """All that the choice knows of a backend."""

    name: AttentionBackend
    attend: AttentionFunction
    checks: tuple[Check, ...]
    packed: Literal["always", "on one context rank", "never"]  # whether it takes rows of several documents
    images: bool = True  # whether it takes rows whose noisy half leaves tokens out


def _refuse_cpu(request: BackendRequest) -> None:
    require(
        request.device == "cuda",
        f"train.attention={request.name!r} on the CPU: its kernels are a GPU's",
        "sdpa, reference",
        "set train.attention=auto",
    )


def _refuse_gpu(request: BackendRequest) -> None:
    require(
        request.device == "cpu",
        f"train.attention={request.name!r} on {request.device}, where dense masks cost memory and the fused kernels",
        ", ".join(backend.name for backend in BACKENDS.values() if _refuse_gpu not in backend.checks),
        "set train.attention=auto",
    )


def _check_flex(request: BackendRequest) -> None:
    if request.device == "cpu":
        require(
            not request.training,
            "train.attention='flex' to train on the CPU, where flex_attention has no backward",
            "sdpa, reference",
            "set train.attention=auto",
        )
        return
    _require_dtype(request, (*HALF_DTYPES, torch.float32))
    _require_head_dim(request, 16, 256, 1)


def _check_flash(request: BackendRequest) -> None:
    _require_dtype(request, HALF_DTYPES)
    _require_head_dim(request, 16, 128, 8)
    _require_package(request, "flash_attn", "flash-attn-4")
    _require_package(request, "flash_attn.cute", "flash-attn-4")


def _check_flash_3(request: BackendRequest) -> None:
    _require_dtype(request, HALF_DTYPES)
    _require_head_dim(request, 8, 256, 8)
    _require_package(request, fa3.MODULE, "flash-attn-3, from the hopper folder of flash-attention's sources")
    capability = torch.cuda.get_device_capability()
    require(
        capability == (9, 0),
        f"train.attention='fa3' on compute capability {capability[0]}.{capability[1]}",
        "9.0, a Hopper GPU",
        "set train.attention=auto",
    )


def _check_transformer_engine(request: BackendRequest) -> None:
    _require_dtype(request, HALF_DTYPES)
    _require_head_dim(request, 16, 256, 8)
    _require_package(request, "transformer_engine", "transformer-engine and its -torch")


def _check_score_mod(request: BackendRequest) -> None:
    _require_package(request, "cudnn", "nvidia-cudnn-frontend")


def _check_cudnn_flex(request: BackendRequest) -> None:
    _require_dtype(request, HALF_DTYPES)
    _require_head_dim(request, 8, 128, 8)
    for package, wheel in (("cudnn", "nvidia-cudnn-frontend"), ("cutlass", "nvidia-cutlass-dsl")):
        _require_package(request, package, wheel)
    _require_package(request, "cudnn.flex_attention", "nvidia-cudnn-frontend 1.32 or newer")


def refuse_packed_documents(request: BackendRequest) -> None:
    """Refuse rows of several documents where the backend has no way for them. Raises: UserError."""
    always, one_rank = (
        [_name_with_device(one) for one in BACKENDS.values() if one.packed == kind]
        for kind in ("always", "on one context rank")
    )
    support = BACKENDS[request.name].packed
    require(
        not request.packed or support == "always" or (support == "on one context rank" and request.context_ranks == 1),
        f"train.attention={request.name} with packed documents (diffusion.document_mask=True)"
        + (f" and parallel.context={request.context_ranks}" if request.context_ranks > 1 else ""),
        f"{', '.join(always)}, and without context parallelism {', '.join(one_rank)}",
        "set train.attention=auto",
    )


def refuse_images(request: BackendRequest) -> None:
    """Refuse rows with images where the backend has no way for them. Raises: UserError."""
    require(
        not request.images or BACKENDS[request.name].images,
        f"train.attention={request.name} with images",
        ", ".join(_name_with_device(backend) for backend in BACKENDS.values() if backend.images),
        "set train.attention=auto",
    )


def _name_with_device(backend: Backend) -> str:
    return f"{backend.name} (CPU)" if _refuse_gpu in backend.checks else backend.name


_ON_ENGINE = (_refuse_cpu, _check_transformer_engine)
# To add a backend, write its file, add its record here and its name to config.AttentionBackend.
BACKENDS: dict[AttentionBackend, Backend] = {
    backend.name: backend
    for backend in (
        Backend("reference", reference.attend_reference, (), "always"),
        Backend("sdpa", sdpa.attend_sdpa, (_refuse_gpu,), "always"),
        Backend("flex", flex.attend_flex, (_check_flex,), "always"),
        Backend("flex+fa4", partial(flex.attend_flex, options=flex.FLASH), (_refuse_cpu, _check_flash), "always"),
        Backend("te", te.attend_te, _ON_ENGINE, "on one context rank"),
        Backend("te+near_flex", te.attend_te_local_flex, (*_ON_ENGINE, _check_flex), "on one context rank"),
        Backend("te+flex", te.attend_te_noisy_flex, (*_ON_ENGINE, _check_flex), "on one context rank"),
        Backend(
            "cudnn_flex", cudnn_flex.attend_cudnn_flex, (_refuse_cpu, _check_cudnn_flex), "on one context rank", False
        ),
        Backend("fa3", fa3.attend_fa3, (_refuse_cpu, _check_flash_3), "on one context rank"),
        Backend("te+mod", te.attend_te_score_mod, (*_ON_ENGINE, _check_score_mod), "never", False),
    )
}


@lru_cache
def choose_backend(request: BackendRequest) -> AttentionFunction:
    """The attention function that is asked for; "auto" is the first of AUTO that can. Each choice is logged once.

    Raises: UserError where the backend cannot run with these settings.
    """
    chosen = _pick_backend(request)
    reason = f"auto: {WHY[request.device]}" if request.name == "auto" else "asked for"
    logger.info(
        "attention: %s (%s) on %s, %s, head_dim %d",
        *(chosen.name, reason, request.device, request.dtype, request.head_dim),
    )
    return BACKENDS[chosen.name].attend


def check_attention_backend(run: RunConfig, device_type: str) -> None:
    """Refuse before the run starts what `choose_backend` would refuse at the first step. Raises: UserError."""
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    packed, ranks = run.diffusion.document_mask, run.parallel.context
    images = run.vision is not None
    asked = BackendRequest(run.train.attention, device_type, dtype, run.model.head_dim, True, packed, ranks, images)
    _pick_backend(asked)


def _pick_backend(request: BackendRequest) -> BackendRequest:
    """The request by the name of the backend that is chosen; logged is only what "auto" passes over."""
    require_choice("train.attention", request.name, AttentionBackend)
    require(request.device in AUTO, f"attention on device {request.device!r}", ", ".join(AUTO), "use one of them")
    names = AUTO[request.device] if request.name == "auto" else (request.name,)
    *others, last = (replace(request, name=name) for name in names)
    for candidate in others:
        try:
            _refuse_unusable(candidate)
        except UserError as refusal:
            logger.info("attention: not %s: %s", candidate.name, refusal)
        else:
            return candidate
    _refuse_unusable(last)
    return last


def _refuse_unusable(request: BackendRequest) -> None:
    """Refuse, with the reason, what the backend cannot do. Raises: UserError."""
    refuse_packed_documents(request)
    refuse_images(request)
    for check in BACKENDS[request.name].checks:
        check(request)


def _require_dtype(request: BackendRequest, allowed: tuple[torch.dtype, ...]) -> None:
    require(
        request.dtype in allowed,
        f"train.attention={request.name!r} on a GPU with {request.dtype}",
        ", ".join(str(dtype) for dtype in allowed),
        "change the precision, or set train.attention=reference",
    )


def _require_head_dim(request: BackendRequest, low: int, high: int, multiple: int) -> None:
    require(
        low <= request.head_dim <= high and request.head_dim % multiple == 0,
        f"model.head_dim={request.head_dim} with train.attention={request.name!r} on a GPU",
        f"{low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else ""),
        "change model.head_dim, or set train.attention=reference",
    )


def _require_package(request: BackendRequest, package: str, wheel: str) -> None:
    """Looks for the package and does not import it, because an import takes seconds."""
    require(
        importlib.util.find_spec(package) is not None,
        f"train.attention={request.name!r} without {package}",
        f"an environment with {wheel}",
        "install it, or set train.attention=auto",
    )

"""Which attention runs where: one choice, refused with the reason where it cannot work."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention import flex, reference, sdpa
from nld_train.attention.fused import te
from nld_train.attention.fused.decomposition import refuse_packed_documents
from nld_train.config import AttentionBackend, RunConfig, require, require_choice
from nld_train.dual_stream.context_shard import WHOLE, ContextShard
from nld_train.dual_stream.row_layout import RowLayout
from nld_train.errors import UserError

logger = logging.getLogger(__name__)

# What "auto" tries, best first, and why. On GPUs benchmarks/gpu.sh is to find the order. It has not run on one yet: so
# far it is the backend with the least that is new in it.
AUTO: dict[str, tuple[AttentionBackend, ...]] = {"cuda": ("flex",), "cpu": ("sdpa",)}
WHY = {"cuda": "none has been measured on a GPU yet", "cpu": "flex_attention has no backward there"}
HALF_DTYPES = (torch.float16, torch.bfloat16)


class AttentionFunction(Protocol):
    """The signature of every backend.

    query [B, H, S/c, D], of the positions `cut.queries(layout)`; key, value [B, G, K, D], of those of `cut.keys(layout,
    packed)`, packed where there are documents; documents [B, L] int64 on the CPU, or None. Uncut: all S positions.
    Returns: [B, H, S/c, D].
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: RowLayout,
        scale: float,
        documents: Tensor | None = None,
        cut: ContextShard = WHOLE,
    ) -> Tensor: ...


BACKENDS: dict[AttentionBackend, AttentionFunction] = {
    "reference": reference.attend_reference,
    "sdpa": sdpa.attend_sdpa,
    "flex": flex.attend_flex,
    "flex+fa4": partial(flex.attend_flex, options=flex.FLASH),
    "te": te.attend_te,
    "te+near_flex": te.attend_te_local_flex,
    "te+flex": te.attend_te_noisy_flex,
    "te+mod": te.attend_te_score_mod,
}


@dataclass(frozen=True)
class BackendRequest:
    """What is asked of a backend, by its name or "auto"."""

    name: AttentionBackend
    device: str
    dtype: torch.dtype
    head_dim: int
    training: bool
    packed: bool  # rows of several documents
    context_ranks: int


@lru_cache
def choose_backend(
    name: AttentionBackend,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    training: bool,
    packed: bool = False,
    context_ranks: int = 1,
) -> AttentionFunction:
    """The attention function called `name`; "auto" is the first of AUTO that can. Each choice is logged once.

    Raises: UserError where the backend cannot run with these settings.
    """
    use = _pick_backend(BackendRequest(name, device_type, dtype, head_dim, training, packed, context_ranks))
    reason = f"auto: {WHY[device_type]}" if name == "auto" else "asked for"
    logger.info("attention: %s (%s) on %s, %s, head_dim %d", use.name, reason, device_type, dtype, head_dim)
    return BACKENDS[use.name]


def check_attention_backend(run: RunConfig, device_type: str) -> None:
    """Refuse at the door what `choose` would refuse at the first step. Raises: UserError."""
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    packed, ranks = run.diffusion.document_mask, run.parallel.context
    _pick_backend(BackendRequest(run.train.attention, device_type, dtype, run.model.head_dim, True, packed, ranks))


def _pick_backend(asked: BackendRequest) -> BackendRequest:
    """`choose`, without a word where nothing is passed over."""
    require_choice("train.attention", asked.name, AttentionBackend)
    require(asked.device in AUTO, f"attention on device {asked.device!r}", ", ".join(AUTO), "use one of them")
    names = AUTO[asked.device] if asked.name == "auto" else (asked.name,)
    *others, last = (replace(asked, name=one) for one in names)
    for use in others:
        try:
            _refuse_unusable(use)
        except UserError as refusal:
            logger.info("attention: not %s: %s", use.name, refusal)
        else:
            return use
    _refuse_unusable(last)
    return last


def _refuse_unusable(use: BackendRequest) -> None:
    """Refuse, with the reason, what the backend cannot do. Raises: UserError."""
    for family in CHECKS[use.name]:
        family(use)


def _on_a_gpu(use: BackendRequest) -> None:
    require(
        use.device == "cuda",
        f"train.attention={use.name!r} on the CPU: its kernels are a GPU's",
        "sdpa, reference",
        "set train.attention=auto",
    )


def _sdpa(use: BackendRequest) -> None:
    require(
        use.device == "cpu",
        f"train.attention='sdpa' on {use.device}, where its dense masks cost memory and the fused kernels",
        ", ".join(name for name in BACKENDS if name != "sdpa"),
        "set train.attention=auto",
    )


def _flex(use: BackendRequest) -> None:
    if use.device == "cpu":
        require(
            not use.training,
            "train.attention='flex' to train on the CPU, where flex_attention has no backward",
            "sdpa, reference",
            "set train.attention=auto",
        )
        return
    _dtype(use, (*HALF_DTYPES, torch.float32))
    _head_dim(use, 16, 256, 1)


def _flash(use: BackendRequest) -> None:
    _on_a_gpu(use)
    _dtype(use, HALF_DTYPES)
    _head_dim(use, 16, 128, 8)
    _installed(use, "flash_attn", "flash-attn-4")
    _installed(use, "flash_attn.cute", "flash-attn-4")


def _transformer_engine(use: BackendRequest) -> None:
    _on_a_gpu(use)
    refuse_packed_documents(use.name, use.packed, use.context_ranks)
    _dtype(use, HALF_DTYPES)
    _head_dim(use, 16, 256, 8)
    _installed(use, "transformer_engine", "transformer-engine and its -torch")


def _score_mod(use: BackendRequest) -> None:
    _installed(use, "cudnn", "nvidia-cudnn-frontend")


CHECKS: dict[AttentionBackend, tuple[Callable[[BackendRequest], None], ...]] = {
    "reference": (),
    "sdpa": (_sdpa,),
    "flex": (_flex,),
    "flex+fa4": (_flash,),
    "te": (_transformer_engine,),
    "te+near_flex": (_transformer_engine, _flex),
    "te+flex": (_transformer_engine, _flex),
    "te+mod": (_transformer_engine, _score_mod),
}


def _dtype(use: BackendRequest, allowed: tuple[torch.dtype, ...]) -> None:
    require(
        use.dtype in allowed,
        f"train.attention={use.name!r} on a GPU with {use.dtype}",
        ", ".join(str(dtype) for dtype in allowed),
        "change the precision, or set train.attention=reference",
    )


def _head_dim(use: BackendRequest, low: int, high: int, multiple: int) -> None:
    require(
        low <= use.head_dim <= high and use.head_dim % multiple == 0,
        f"model.head_dim={use.head_dim} with train.attention={use.name!r} on a GPU",
        f"{low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else ""),
        "change model.head_dim, or set train.attention=reference",
    )


def _installed(use: BackendRequest, package: str, wheel: str) -> None:
    """Looked for, not imported: that takes seconds."""
    require(
        importlib.util.find_spec(package) is not None,
        f"train.attention={use.name!r} without {package}",
        f"an environment with {wheel}",
        "install it, or set train.attention=auto",
    )

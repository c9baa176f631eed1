"""Which attention runs where: one choice, refused with the reason where it cannot work."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention import flex, reference, sdpa, te
from nld_train.attention.pieces import refuse_packed
from nld_train.config import AttentionBackend, RunConfig, require, require_choice
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout
from nld_train.errors import UserError

logger = logging.getLogger(__name__)

# What "auto" tries, best first, and why. On GPUs benchmarks/gpu.sh is to find the order. It has not run on one yet: so
# far it is the backend with the least that is new in it.
AUTO: dict[str, tuple[AttentionBackend, ...]] = {"cuda": ("flex",), "cpu": ("sdpa",)}
WHY = {"cuda": "none has been measured on a GPU yet", "cpu": "flex_attention has no backward there"}
HALF = (torch.float16, torch.bfloat16)


class Attend(Protocol):
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
        layout: Layout,
        scale: float,
        documents: Tensor | None = None,
        cut: Cut = WHOLE,
    ) -> Tensor: ...


BACKENDS: dict[AttentionBackend, Attend] = {
    "reference": reference.attend_layout,
    "sdpa": sdpa.attend,
    "flex": flex.attend,
    "flex+fa4": partial(flex.attend, options=flex.FLASH),
    "te": te.attend,
    "te+near_flex": te.attend_near_by_flex,
    "te+flex": te.attend_noisy_by_flex,
    "te+mod": te.attend_by_score_mod,
}


@dataclass(frozen=True)
class Use:
    """What is asked of a backend, by its name or "auto"."""

    name: AttentionBackend
    device: str
    dtype: torch.dtype
    head_dim: int
    training: bool
    packed: bool  # rows of several documents
    context_ranks: int


@lru_cache
def choose(
    name: AttentionBackend,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    training: bool,
    packed: bool = False,
    context_ranks: int = 1,
) -> Attend:
    """The attention function called `name`; "auto" is the first of AUTO that can. Each choice is logged once.

    Raises: UserError where the backend cannot run with these settings.
    """
    use = pick(Use(name, device_type, dtype, head_dim, training, packed, context_ranks))
    reason = f"auto: {WHY[device_type]}" if name == "auto" else "asked for"
    logger.info("attention: %s (%s) on %s, %s, head_dim %d", use.name, reason, device_type, dtype, head_dim)
    return BACKENDS[use.name]


def check_run(run: RunConfig, device_type: str) -> None:
    """Refuse at the door what `choose` would refuse at the first step. Raises: UserError."""
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    packed, ranks = run.diffusion.document_mask, run.parallel.context
    pick(Use(run.train.attention, device_type, dtype, run.model.head_dim, True, packed, ranks))


def pick(asked: Use) -> Use:
    """`choose`, without a word where nothing is passed over."""
    require_choice("train.attention", asked.name, AttentionBackend)
    require(asked.device in AUTO, f"attention on device {asked.device!r}", ", ".join(AUTO), "use one of them")
    names = AUTO[asked.device] if asked.name == "auto" else (asked.name,)
    *others, last = (replace(asked, name=one) for one in names)
    for use in others:
        try:
            check(use)
        except UserError as refusal:
            logger.info("attention: not %s: %s", use.name, refusal)
        else:
            return use
    check(last)
    return last


def check(use: Use) -> None:
    """Refuse, with the reason, what the backend cannot do. Raises: UserError."""
    for family in CHECKS[use.name]:
        family(use)


def _on_a_gpu(use: Use) -> None:
    require(
        use.device == "cuda",
        f"train.attention={use.name!r} on the CPU: its kernels are a GPU's",
        "sdpa, reference",
        "set train.attention=auto",
    )


def _sdpa(use: Use) -> None:
    require(
        use.device == "cpu",
        f"train.attention='sdpa' on {use.device}, where its dense masks cost memory and the fused kernels",
        ", ".join(name for name in BACKENDS if name != "sdpa"),
        "set train.attention=auto",
    )


def _flex(use: Use) -> None:
    if use.device == "cpu":
        require(
            not use.training,
            "train.attention='flex' to train on the CPU, where flex_attention has no backward",
            "sdpa, reference",
            "set train.attention=auto",
        )
        return
    _dtype(use, (*HALF, torch.float32))
    _head_dim(use, 16, 256, 1)


def _flash(use: Use) -> None:
    _on_a_gpu(use)
    _dtype(use, HALF)
    _head_dim(use, 16, 128, 8)
    _installed(use, "flash_attn", "flash-attn-4")
    _installed(use, "flash_attn.cute", "flash-attn-4")


def _transformer_engine(use: Use) -> None:
    _on_a_gpu(use)
    refuse_packed(use.name, use.packed, use.context_ranks)
    _dtype(use, HALF)
    _head_dim(use, 16, 256, 8)
    _installed(use, "transformer_engine", "transformer-engine and its -torch")


def _score_mod(use: Use) -> None:
    _installed(use, "cudnn", "nvidia-cudnn-frontend")


CHECKS: dict[AttentionBackend, tuple[Callable[[Use], None], ...]] = {
    "reference": (),
    "sdpa": (_sdpa,),
    "flex": (_flex,),
    "flex+fa4": (_flash,),
    "te": (_transformer_engine,),
    "te+near_flex": (_transformer_engine, _flex),
    "te+flex": (_transformer_engine, _flex),
    "te+mod": (_transformer_engine, _score_mod),
}


def _dtype(use: Use, allowed: tuple[torch.dtype, ...]) -> None:
    require(
        use.dtype in allowed,
        f"train.attention={use.name!r} on a GPU with {use.dtype}",
        ", ".join(str(dtype) for dtype in allowed),
        "change the precision, or set train.attention=reference",
    )


def _head_dim(use: Use, low: int, high: int, multiple: int) -> None:
    require(
        low <= use.head_dim <= high and use.head_dim % multiple == 0,
        f"model.head_dim={use.head_dim} with train.attention={use.name!r} on a GPU",
        f"{low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else ""),
        "change model.head_dim, or set train.attention=reference",
    )


def _installed(use: Use, package: str, wheel: str) -> None:
    """Looked for, not imported: that takes seconds."""
    require(
        importlib.util.find_spec(package) is not None,
        f"train.attention={use.name!r} without {package}",
        f"an environment with {wheel}",
        "install it, or set train.attention=auto",
    )

"""Which attention runs where: one choice, refused with the reason where it cannot work."""

import logging
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from nld_train.attention import flex, reference, sdpa
from nld_train.config import AttentionBackend, require, require_choice
from nld_train.dual_stream.context import WHOLE, Cut
from nld_train.dual_stream.layout import Layout

logger = logging.getLogger(__name__)

FLEX_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FLEX_HEAD_DIMS = (16, 256)


class Attend(Protocol):
    """The signature of every backend.

    query [B, H, S/c, D], of the positions `cut.queries(layout)`; key, value [B, G, K, D], of those of `cut.keys(layout,
    packed)`, packed where there are documents; documents [B, L] int64 or None. Uncut: all S positions.
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
}


@lru_cache
def choose(name: AttentionBackend, device_type: str, dtype: torch.dtype, head_dim: int, training: bool) -> Attend:
    """The attention function called `name`; "auto" is flex on CUDA and sdpa on the CPU. Each choice is logged once.

    Raises: UserError where the backend cannot run with these settings.
    """
    require_choice("train.attention", name, AttentionBackend)
    require(device_type in ("cuda", "cpu"), f"attention on device {device_type!r}", "cuda, cpu", "use one of them")
    backend = name
    if backend == "auto":
        backend = "flex" if device_type == "cuda" else "sdpa"
    if backend == "flex":
        _check_flex(device_type, dtype, head_dim, training)
    if backend == "sdpa":
        _check_sdpa(device_type)
    logger.info("attention: %s (asked for %s) on %s, %s, head_dim %d", backend, name, device_type, dtype, head_dim)
    return BACKENDS[backend]


def _check_flex(device_type: str, dtype: torch.dtype, head_dim: int, training: bool) -> None:
    if device_type == "cpu":
        require(
            not training,
            "train.attention='flex' to train on the CPU, where flex_attention has no backward",
            "sdpa, reference",
            "set train.attention=auto",
        )
        return
    require(
        dtype in FLEX_DTYPES,
        f"train.attention='flex' on a GPU with {dtype}",
        ", ".join(str(dtype) for dtype in FLEX_DTYPES),
        "change the precision, or set train.attention=reference",
    )
    low, high = FLEX_HEAD_DIMS
    require(
        low <= head_dim <= high,
        f"model.head_dim={head_dim} with train.attention='flex' on a GPU",
        f"{low} to {high}",
        "change model.head_dim, or set train.attention=reference",
    )


def _check_sdpa(device_type: str) -> None:
    require(
        device_type == "cpu",
        f"train.attention='sdpa' on {device_type}, where its dense masks cost memory and the fused kernels",
        "flex, reference",
        "set train.attention=auto",
    )

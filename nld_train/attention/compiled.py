"""Functions of tensors that become one kernel on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compile_on_gpu(function: Callable[..., Any], device_type: str, **settings: Any) -> Callable[..., Any]:
    """`function` as it is on a CPU; on CUDA compiled, once, so that it reads and writes each tensor once.

    `settings` are torch.compile's.
    """
    return torch.compile(function, **settings) if device_type == "cuda" else function

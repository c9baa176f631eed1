"""Functions of tensors that become one kernel on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compile_on_gpu(function: Callable[..., Any], device_type: str, **settings: Any) -> Callable[..., Any]:
    """`function`, compiled once on CUDA so that it reads and writes everything once. settings: of torch.compile."""
    return torch.compile(function, **settings) if device_type == "cuda" else function

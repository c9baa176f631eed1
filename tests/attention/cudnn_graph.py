"""A cuDNN attention graph for an H200, built without one: cuDNN's own library takes its operations or refuses them."""

from collections.abc import Callable
from typing import Any

import cudnn
import torch
from torch import Tensor

HEADS, KEY_HEADS, DIM = 8, 2, 64


class Graph:
    """`problems` attentions of `queries` over `keys` in bfloat16, laid out as bshd."""

    def __init__(self, problems: int, queries: int, keys: int) -> None:
        self.problems, self.queries, self.keys = problems, queries, keys
        self.kind = cudnn.data_type
        # The graph that callbacks are given. cudnn.pygraph calls them only where there is a GPU to ask.
        self.graph = cudnn._pybind_module.backend_graph(
            io_data_type=self.kind.BFLOAT16,
            intermediate_data_type=self.kind.FLOAT,
            compute_data_type=self.kind.FLOAT,
            sm_version=900,
            sm_count=132,
        )

    def bshd(self, heads: int, length: int) -> Any:
        shape, stride = [self.problems, heads, length, DIM], [heads * length * DIM, DIM, heads * DIM, 1]
        return self.graph.tensor(dim=shape, stride=stride, data_type=self.kind.BFLOAT16)

    def like(self, x: Tensor) -> Any:
        kind = self.kind.INT32 if x.dtype == torch.int32 else self.kind.FLOAT
        return self.graph.tensor(dim=list(x.shape), stride=list(x.stride()), data_type=kind)

    def build(self, backward: bool, **words: Any) -> None:
        """Raises: what cuDNN raises."""
        inputs = {"q": self.bshd(HEADS, self.queries), "k": self.bshd(KEY_HEADS, self.keys)}
        inputs["v"] = self.bshd(KEY_HEADS, self.keys)
        if backward:
            stats = self.like(torch.empty(self.problems, HEADS, self.queries, 1))
            given = {"o": self.bshd(HEADS, self.queries), "dO": self.bshd(HEADS, self.queries), "stats": stats}
            results = self.graph.sdpa_backward(**inputs, **given, attn_scale=0.1, **words)
        else:
            *results, lse = self.graph.sdpa(**inputs, attn_scale=0.1, generate_stats=True, **words)
            lse.set_output(True).set_data_type(self.kind.FLOAT)
        for result, model in zip(results, inputs.values(), strict=backward):
            result.set_output(True).set_dim(model.get_dim()).set_stride(model.get_stride())
        self.graph.validate()
        self.graph.build_operation_graph()


def counted(callback: Callable[..., Any], *settings: Any) -> tuple[Callable[..., Any], list[int]]:
    """A score_mod with settings behind the score, and a list as long as it was called often."""
    calls: list[int] = []

    def modify(graph: Any, score: Any) -> Any:
        calls.append(1)
        return callback(graph, score, *settings)

    return modify, calls

"""A cuDNN attention graph for an H200, built without one: cuDNN's own library takes its operations or refuses them."""

from collections.abc import Callable
from typing import Any

import cudnn
import torch
from torch import Tensor

HEADS, KEY_HEADS, DIM = 8, 2, 64


class Graph:
    """`segments` attentions of `queries` over `keys` in bfloat16, laid out as bshd; or, of so many `tokens` of queries
    and keys in all, of up to so many each, laid out as thd."""

    def __init__(self, segments: int, queries: int, keys: int, tokens: tuple[int, int] | None = None) -> None:
        self.segments, self.queries, self.keys, self.tokens = segments, queries, keys, tokens
        self.kind = cudnn.data_type
        # The graph that callbacks are given. cudnn.pygraph calls them only where there is a GPU to ask.
        self.graph = cudnn._pybind_module.backend_graph(
            io_data_type=self.kind.BFLOAT16,
            intermediate_data_type=self.kind.FLOAT,
            compute_data_type=self.kind.FLOAT,
            sm_version=900,
            sm_count=132,
        )

    def laid_out(self, heads: int, length: int) -> Any:
        shape, stride = [self.segments, heads, length, DIM], [heads * length * DIM, DIM, heads * DIM, 1]
        made = self.graph.tensor(dim=shape, stride=stride, data_type=self.kind.BFLOAT16)
        return made if self.tokens is None else made.set_ragged_offset(self.per_segment(1, self.kind.INT64))

    def per_segment(self, more: int, kind: Any) -> Any:
        return self.graph.tensor(dim=[self.segments + more, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kind)

    def statistics(self, made: Any) -> Any:
        """The log-sum-exp of every query, as Transformer Engine lays it out."""
        count = self.queries
        stride = [HEADS * count, count, 1, 1] if self.tokens is None else [HEADS * count, 1, HEADS, 1]
        made.set_dim([self.segments, HEADS, count, 1]).set_stride(stride).set_data_type(self.kind.FLOAT)
        return made if self.tokens is None else made.set_ragged_offset(self.per_segment(1, self.kind.INT64))

    def lengths(self, backward: bool) -> dict[str, Any]:
        if self.tokens is None:
            return {}
        each = {f"seq_len_{x}": self.per_segment(0, self.kind.INT32) for x in ("q", "kv")}
        whole = {f"max_total_seq_len_{x}": count for x, count in zip(("q", "kv"), self.tokens, strict=True)}
        return {"use_padding_mask": True, **each, **(whole if backward else {})}

    def like(self, x: Tensor) -> Any:
        kind = self.kind.INT32 if x.dtype == torch.int32 else self.kind.FLOAT
        return self.graph.tensor(dim=list(x.shape), stride=list(x.stride()), data_type=kind)

    def build(self, backward: bool, **words: Any) -> None:
        """Raises: what cuDNN raises."""
        shapes = {"q": (HEADS, self.queries), "k": (KEY_HEADS, self.keys), "v": (KEY_HEADS, self.keys)}
        inputs = {name: self.laid_out(*shape) for name, shape in shapes.items()}
        words |= self.lengths(backward)
        if backward:
            given = {name: self.laid_out(*shapes["q"]) for name in ("o", "dO")}
            given["stats"] = self.statistics(self.graph.tensor(dim=[1] * 4, stride=[1] * 4))
            results = self.graph.sdpa_backward(**inputs, **given, attn_scale=0.1, **words)
        else:
            *results, lse = self.graph.sdpa(**inputs, attn_scale=0.1, generate_stats=True, **words)
            self.statistics(lse.set_output(True))
        for result, model in zip(results, inputs.values(), strict=backward):
            result.set_output(True).set_dim(model.get_dim()).set_stride(model.get_stride())
            if self.tokens is not None:
                result.set_ragged_offset(self.per_segment(1, self.kind.INT64))
        self.graph.validate()
        self.graph.build_operation_graph()


def counted(callback: Callable[..., Any], *settings: Any) -> tuple[Callable[..., Any], list[int]]:
    """A score_mod with settings behind the score, and a list as long as it was called often."""
    calls: list[int] = []

    def modify(graph: Any, score: Any) -> Any:
        calls.append(1)
        return callback(graph, score, *settings)

    return modify, calls

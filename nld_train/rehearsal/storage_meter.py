"""Counts the bytes of live storages by category while a program runs, on fake tensors as on real ones."""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

COMMUNICATION = "communication"
GATHERS = ("allgather_", "_allgather_base_", "allgather_into_tensor_coalesced_")


class StorageMeter(TorchDispatchMode):
    """While this is entered, every new storage is counted under `category` until nobody holds it any more.

    Collectives are not run: they return at once. What they gather into counts as communication.
    """

    def __init__(self, category: str) -> None:
        super().__init__()
        self.category = category
        self.live: Counter[str] = Counter()  # bytes now
        self.peak: dict[str, int] = {}  # `live` at the moment when its sum was largest
        self._known: dict[int, str] = {}  # address of a live storage -> its category

    def __torch_dispatch__(self, function: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "c10d":
            return self._skip_collective(function, args)
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made

    def move(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count the storages of these tensors under another category from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address in self._known:
                self.live[self._known[address]] -= storage.nbytes()
                self.live[category] += storage.nbytes()
                self._known[address] = category

    def _skip_collective(self, function: Any, args: tuple) -> Any:
        if function.overloadpacket.__name__ in GATHERS:
            transient = [each for each in _tensors_in(args[0]) if each.untyped_storage()._cdata in self._transient()]
            self.move(transient, COMMUNICATION)
        work = FakeWork().boxed()
        return work if len(function._schema.returns) == 1 else (args[0], work)

    def _transient(self) -> set[int]:
        """Storages that were made under the present category: parameters are gathered in place and stay what they
        are."""
        return {address for address, category in self._known.items() if category == self.category}

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known[address] = self.category
        self.live[self.category] += size
        weakref.finalize(storage, self._forget, address, size)
        if self.live.total() > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _forget(self, address: int, size: int) -> None:
        self.live[self._known.pop(address)] -= size


def _tensors_in(nested: Any) -> list[Tensor]:
    """The tensors of a tensor, a list of them, or a list of lists."""
    found: list[Tensor] = []
    tree_map_only(torch.Tensor, found.append, nested)
    return found

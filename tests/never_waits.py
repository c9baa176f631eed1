"""A watch for operators that a GPU would make the host wait at."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their result's size, or a Python number, is read from the device; lift_fresh: a tensor from Python numbers is copied.
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.lift_fresh),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.histc),
}
INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class NeverWaits(TorchDispatchMode):
    """Fails at an operator that a GPU would make the host wait at."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        assert packet not in READS, f"{func} waits for the device"
        if packet in INDEXES:
            masks = [index for index in args[1] if index is not None and index.dtype is torch.bool]
            assert not masks, f"{func} by a mask waits for the device to count it"
        assert func is not aten.repeat_interleave.Tensor, f"{func} waits for the device to add up the repeats"
        made = func(*args, **(kwargs or {}))
        check_devices(func, args, made)
        return made


def check_devices(func: Any, args: Any, made: Any) -> None:
    """No tensor goes from one device to another. (Numbers of no dimension may: they travel as arguments.)"""
    for tensor in made if isinstance(made, tuple | list) else (made,):
        for given in args:
            if isinstance(given, Tensor) and isinstance(tensor, Tensor) and given.dim():
                assert given.device == tensor.device, f"{func} copies from {given.device} to {tensor.device}"

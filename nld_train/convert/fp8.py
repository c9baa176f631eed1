"""FP8 weights as the sources of the family store them: a tensor of float8_e4m3fn, and its scales beside it.

A scale multiplies the whole tensor, or one block of it where the scales are a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.convert.safetensors_file import SafetensorsFile
from nld_train.convert.weight_table import Shape
from nld_train.errors import UserError

FP8 = torch.float8_e4m3fn
# Scales of what is multiplied with the weights; weights that are read as bfloat16 have no use for them.
ACTIVATION_SCALES = (".activation_scale", ".input_scale")


def scale_name(weight: str) -> str:
    """Where the scales of a weight lie."""
    return f"{weight}_scale_inv"


@dataclass(frozen=True)
class Fp8Scale:
    """The scales of one tensor."""

    numbers: Tensor  # float32: one number, or [rows of blocks, columns of blocks]
    block: tuple[int, int]  # rows and columns that one number multiplies

    @classmethod
    def of(cls, weight: str, shape: Shape, stored: Mapping[str, tuple[SafetensorsFile, str]]) -> "Fp8Scale":
        """Read the scales of a weight. Raises: UserError where there are none, or their table does not fit."""
        name = scale_name(weight)
        if name not in stored:
            raise UserError(
                f"{weight} is FP8 and has no {name}",
                "FP8 weights with their scales, or weights of 16 bits and more",
                "use the whole checkpoint",
            )
        file, _ = stored[name]
        numbers = file.read_whole(name).float()
        if numbers.numel() == 1:
            return cls(numbers.reshape(()), (shape[0], shape[-1]))
        blocks = [-(-size // count) for size, count in zip(shape, numbers.shape, strict=False)]
        counts = [-(-size // block) for size, block in zip(shape, blocks, strict=False)]
        if not len(shape) == numbers.dim() == 2 or counts != list(numbers.shape):
            raise UserError(
                f"{name} has the shape {list(numbers.shape)} for a weight of {list(shape)}",
                "one number, or a table of even blocks",
                "use the whole checkpoint",
            )
        return cls(numbers, (blocks[0], blocks[1]))

    def applied(self, rows: Tensor, first: int) -> Tensor:
        """Rows [n, columns] of the tensor from row `first` on, times their scales, in bfloat16."""
        if self.numbers.dim() == 0:
            return (rows.float() * self.numbers).bfloat16()
        row = torch.arange(first, first + len(rows)) // self.block[0]
        column = torch.arange(rows.shape[1]) // self.block[1]
        return (rows.float() * self.numbers[row][:, column]).bfloat16()

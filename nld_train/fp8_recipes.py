"""FP8 training: Transformer Engine's recipes, and what each asks of a GPU and of a run's sizes. Plain numbers:
config.py asks, and planning imports no torch.

The layers' linear maps are computed in FP8; weights, optimizer, attention, norms and the LM head stay as they are in
bf16. Offered are the recipes without a state of their own. Delayed scaling keeps a history of largest values, which
evaluations and the memory trial would move, and which a checkpoint holds as a pickle that our readers refuse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nld_train.errors import require

Fp8Recipe = Literal["none", "tensorwise", "blockwise", "mxfp8"]
WEIGHT_COPIES = 2  # bytes of FP8 copies of a weight, one for each of its products; kept over a step's micro-batches
SPEED = 2.0  # an H100's FP8 products, against its bf16 ones


@dataclass(frozen=True)
class Fp8Needs:
    """What a recipe needs."""

    multiple: int  # sizes of the linear maps and positions of a rank are multiples of it: the recipe's scaling block
    capability: tuple[int, int]  # CUDA compute capability, at least
    devices: str
    below: tuple[int, int] | None = None  # and less than this one; None: any newer one


NEEDS: Mapping[str, Fp8Needs] = {
    "tensorwise": Fp8Needs(16, (8, 9), "Ada, Hopper or newer: L40, H100, H200"),
    "blockwise": Fp8Needs(128, (9, 0), "Hopper or newer: H100, H200"),
    "mxfp8": Fp8Needs(32, (10, 0), "Blackwell of data centers: B200, B300", below=(12, 0)),
}


def check_fp8(recipe: str, precision: str, drafter: bool, sizes: Mapping[str, int]) -> None:
    """Refuse an FP8 run that Transformer Engine would not compute. sizes: by name, what has to be a multiple of the
    recipe's block. Raises: UserError."""
    if recipe == "none":
        return
    require(
        precision == "bf16",
        f"train.fp8={recipe} with train.precision={precision}",
        "bf16: the weights, and all but the layers' linear maps",
        "set train.precision=bf16, or train.fp8=none",
    )
    require(
        not drafter,
        f"train.fp8={recipe} with a drafter",
        "none: its drafts are judged by the frozen model as decoding computes it, in bf16",
        "set train.fp8=none",
    )
    multiple = NEEDS[recipe].multiple
    for name, size in sizes.items():
        require(
            size % multiple == 0,
            f"{name} = {size} with train.fp8={recipe}",
            f"multiples of {multiple}",
            "change the layout or the micro-batch, take another recipe, or set train.fp8=none",
        )


def check_fp8_device(recipe: str, capability: tuple[int, int] | None) -> None:
    """Refuse a machine that cannot compute a recipe. capability: of its GPU; None: it has none. Raises: UserError."""
    if recipe == "none":
        return
    needs = NEEDS[recipe]
    there = "a machine without a GPU" if capability is None else f"a GPU of compute capability {capability}"
    below = "" if needs.below is None else f", below {needs.below[0]}.{needs.below[1]}"
    require(
        capability is not None and capability >= needs.capability and (needs.below is None or capability < needs.below),
        f"train.fp8={recipe} on {there}",
        f"compute capability {needs.capability[0]}.{needs.capability[1]} or more{below} ({needs.devices})",
        "set train.fp8=none, or train it on such a machine",
    )

"""What trajectories cost: numbers, bytes on disk, and memory of the device that collects them. Arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from nld_train.config import ModelConfig
from nld_train.evaluation.oracle_blocks import CONTEXTS
from nld_train.evaluation.oracle_forwards import TOKENS
from nld_train.hf.sampler_features_nemotron_labs_diffusion import STATISTICS, TOP, feature_count
from nld_train.plan.parameters import model_parameters
from nld_train.sampler.trajectory_walks import POSITIONS
from nld_train.trajectories.embedding_pca import COMPONENTS

ID, STEP, HALF, SINGLE = 4, 2, 2, 4  # bytes of an id, of the number of a step, of a float16 or bfloat16, of a float32
WIDE_COPIES = 6  # of a piece of the logits in float32, while its distributions are described


def masked_positions(length: int) -> int:
    """Masked places of all steps of a trajectory that commits one a step behind its seed: (B - 1) + ... + 1."""
    return length * (length - 1) // 2


def trajectory_bytes(length: int) -> int:
    """Bytes on disk of a trajectory that commits one a step: its places, its end, and where it is from."""
    position = TOP * ID + len(STATISTICS) * HALF
    return masked_positions(length) * position + length * (ID + STEP) + 3 * ID


def plain_bytes(length: int) -> int:
    """Bytes of the same with all features of all places of every step as float16, and a label of one byte."""
    return (length - 1) * length * (feature_count(COMPONENTS) * HALF + 1)


@dataclass(frozen=True)
class CollectionSize:
    """Of a collection, at most: texts may end early, and hybrid's first steps may commit several tokens."""

    trajectories: int
    steps: int
    positions: int
    bytes: int

    @property
    def step_bytes(self) -> float:
        """Bytes a step, on average."""
        return self.bytes / max(self.steps, 1)


def sized_trajectories(counts: Sequence[tuple[int, int]]) -> CollectionSize:
    """The size of so many trajectories of a block length each. counts: (B, trajectories)."""
    return CollectionSize(
        trajectories=sum(number for _, number in counts),
        steps=sum((length - 1) * number for length, number in counts),
        positions=sum(masked_positions(length) * number for length, number in counts),
        bytes=sum(trajectory_bytes(length) * number for length, number in counts),
    )


def collecting_memory(model: ModelConfig, prompt: int, new: int) -> dict[str, int]:
    """Bytes on the device that collects behind prompts of `prompt` tokens: name -> bytes."""
    places = prompt + new + TOKENS // CONTEXTS  # the states of a forward are written behind the text
    return {
        "weights": HALF * model_parameters(model).total,
        "cache": CONTEXTS * places * 2 * model.layers * model.kv_heads * model.head_dim * HALF,
        "logits": TOKENS * model.vocab_size * HALF + WIDE_COPIES * POSITIONS * model.vocab_size * SINGLE,
    }

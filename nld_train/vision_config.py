"""The vision section of a run: the Pixtral tower and the projector in front of the language model, what transformers
calls their numbers, and the sizes of images in pixels and in tokens.
"""

from dataclasses import dataclass
from typing import Any, Literal

from nld_train.errors import require, require_choice
from nld_train.setting_ranges import check_ranges

VisionActivation = Literal["silu", "gelu"]
IMAGE_NAMES = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")  # of cells, of breaks and of ends, in the published families
# VisionConfig in the words of transformers' PixtralVisionConfig, both directions.
TOWER_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "patch_size": "patch_size",
    "longest_edge": "image_size",
}
# What is not computed otherwise, in the words of PixtralVisionConfig and of Mistral3Config.
FIXED_TOWER: dict[str, Any] = {"model_type": "pixtral", "num_channels": 3, "attention_dropout": 0.0}
FIXED_PROJECTOR: dict[str, Any] = {
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": False,
    "vision_feature_layer": -1,
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The defaults are Ministral-3's [paper sec. 5.3, and its public configuration].

    An image is divided into cells of `cell` pixels squared: merge x merge patches, which the projector makes one token.
    In the row, its tokens are those of its cells, row of cells by row of cells, each row ended by a break token and the
    last one by the end token.
    """

    layers: int = 24
    hidden: int = 1024
    ffn: int = 4096
    heads: int = 16
    activation: VisionActivation = "silu"
    patch_size: int = 14  # pixels
    merge: int = 2  # patches of a side that the projector merges into one token
    longest_edge: int = 1540  # pixels; a larger image is made smaller, its shape kept
    theta: float = 1e4  # of the rotary embedding in two dimensions
    image_token_id: int = 10  # stands for one cell in the tokens of a row
    break_token_id: int = 12  # behind each row of cells but the last
    end_token_id: int = 13  # behind the last row of cells
    train_tower: bool = True  # False: the tower stays as it is, and the projector and the language model are trained
    recompute: bool = False  # the tower's layers keep their inputs alone, as under parallel.recompute=full

    def __post_init__(self) -> None:
        require_choice("vision.activation", self.activation, VisionActivation)
        check_ranges("vision", self)
        require(
            self.hidden % self.heads == 0 and self.hidden // self.heads % 4 == 0,
            f"vision.hidden={self.hidden} with vision.heads={self.heads}",
            "heads of a multiple of 4 numbers: two dimensions of rotary pairs",
            "change one of them",
        )
        require(
            self.longest_edge % self.cell == 0,
            f"vision.longest_edge={self.longest_edge} with cells of {self.cell} pixels",
            f"a multiple of {self.cell}",
            "change vision.longest_edge",
        )
        require(
            len(set(self.token_ids)) == 3,
            f"vision.image_token_id, break_token_id and end_token_id {self.token_ids}",
            "three different ids",
            "use those that the chat file was made with",
        )

    @property
    def cell(self) -> int:
        """Pixels of a side of the square that becomes one token."""
        return self.patch_size * self.merge

    @property
    def token_ids(self) -> tuple[int, int, int]:
        """The ids of cells, breaks and ends."""
        return self.image_token_id, self.break_token_id, self.end_token_id

    def check_run(self, run: Any) -> None:
        """Refuse a run, a RunConfig of config.py, that images cannot be trained in. Raises: UserError."""
        require(run.data.chat, "vision with data.chat=False", "conversations with images", "set data.chat=True")
        require(
            run.parallel.context == 1,
            f"vision with parallel.context={run.parallel.context}: it would cut images in two",
            "whole rows on every rank",
            "set parallel.context=1, and parallel.tensor or parallel.pipeline for memory",
        )
        require(
            run.objective is None,
            f"vision with the section {run.objective and type(run.objective).__name__}",
            "the joint objective: drafters and samplers are trained on text",
            "leave one of the two out",
        )
        named = (*self.token_ids, run.diffusion.mask_token_id)
        require(
            len(set(named)) == len(named) and max(named) < run.model.vocab_size,
            f"vision's token ids {self.token_ids} with diffusion.mask_token_id={run.diffusion.mask_token_id}",
            f"four different ids below model.vocab_size={run.model.vocab_size}",
            "use those that the chat file was made with",
        )


def pixtral_settings(vision: VisionConfig) -> dict[str, Any]:
    """The tower in the words of transformers' PixtralVisionConfig."""
    return {
        **FIXED_TOWER,
        **{key: getattr(vision, name) for name, key in TOWER_KEYS.items()},
        "head_dim": vision.hidden // vision.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": vision.theta},
    }


def projector_settings(vision: VisionConfig) -> dict[str, Any]:
    """The projector in the words of transformers' Mistral3Config."""
    return {**FIXED_PROJECTOR, "spatial_merge_size": vision.merge}


def image_token_count(rows: int, columns: int) -> int:
    """Tokens of an image of so many cells: every row of cells has a break or the end behind it."""
    return rows * (columns + 1)

"""The decoding modes: one table, from which the command line, its help and the docs take them.

To add a mode, write a file of this room with a function of the signature GenerateBatch, and give it an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch, and `nld generate --help` reads this table
    from typing import Any

    from nld_train.decode.result import NFE, Decoded
    from nld_train.decode.run import Prompts
    from nld_train.decode.settings import DecodeConfig
    from nld_train.hf.rows_nemotron_labs_diffusion import Complete, Streamer

    # (model, prompts, settings, streamer, complete) -> the answer to every prompt
    GenerateBatch = Callable[[Any, Prompts, DecodeConfig, Streamer | None, Complete | None], list[Decoded]]


@dataclass(frozen=True)
class DecodingMode:
    """A way to decode, its place in the code, and what it calls its forwards."""

    function: str  # FILE.NAME of its GenerateBatch in nld_train/decode, imported when it is first used
    summary: str  # what one forward does
    prefill: str  # the names of the three counts of NFE; "" for a count that is always 0
    draft_or_denoise: str
    verify_or_refresh: str

    def load_function(self) -> "GenerateBatch":
        """The function that decodes a batch of prompts in this mode; imports torch."""
        file, _, name = self.function.partition(".")
        function: GenerateBatch = vars(import_module(f"nld_train.decode.{file}"))[name]
        return function

    def forwards_text(self, nfe: "NFE") -> str:
        """The forwards of one answer in words, e.g. "prefill 1, draft 9, verify 9"."""
        counts = (
            (self.prefill, nfe.prefill),
            (self.draft_or_denoise, nfe.draft_or_denoise),
            (self.verify_or_refresh, nfe.verify_or_refresh),
        )
        assert all(name or not count for name, count in counts), f"{self.function} counts forwards that have no name"
        return ", ".join(f"{name} {count}" for name, count in counts if name)


MODES = {
    "ar": DecodingMode(
        "ar.generate_ar",
        "gives one token",
        prefill="prefill",
        draft_or_denoise="",
        verify_or_refresh="decode",
    ),
    "diffusion": DecodingMode(
        "diffusion.generate_diffusion",
        "denoises a block",
        prefill="prefill",
        draft_or_denoise="denoise",
        verify_or_refresh="refresh",
    ),
    "self-spec": DecodingMode(
        "self_speculation.generate_self_speculation",
        "drafts a block, or verifies it left to right",
        prefill="prefill",
        draft_or_denoise="draft",
        verify_or_refresh="verify",
    ),
    "quadratic": DecodingMode(
        "quadratic.generate_quadratic",
        "verifies a draft and drafts the next one for every outcome",
        prefill="prefill",
        draft_or_denoise="first draft",
        verify_or_refresh="verify and draft",
    ),
}

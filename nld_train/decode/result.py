"""The answer to one prompt: every decoding mode gives the same record."""

from dataclasses import dataclass

from nld_train.hf.rows_nemotron_labs_diffusion import Generation


@dataclass(frozen=True)
class NFE:
    """Number of function evaluations: the forwards of the model that one row took part in."""

    prefill: int  # causal forwards over the prompt
    draft_or_denoise: int  # forwards without a causal mask: drafts, and denoising steps of diffusion
    verify_or_refresh: int  # causal forwards: verifications, refreshes of finished blocks, the single tokens of AR

    @property
    def total(self) -> int:
        return self.prefill + self.draft_or_denoise + self.verify_or_refresh


@dataclass(frozen=True)
class Decoded:
    """The answer to one prompt."""

    prompt: list[int]
    ids: list[int]  # the generated tokens
    nfe: NFE
    accepted_lengths: list[int]  # how many tokens each verification added: the accepted drafts and one of its own
    order: list[int]  # number of the row's forward that set each token, the last that did; the prefill is 1
    seconds: float  # wall time of the call, which all rows of a batch share
    text: str | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens divided by all forwards.

        The prefill counts, because it gives a token in every mode: AR has exactly 1. (The published figures of block
        diffusion leave the prefill out.)
        """
        return len(self.ids) / self.nfe.total

    @property
    def tokens_per_second(self) -> float:
        """The tokens of this row alone per second, although all rows of the batch were decoded in that time."""
        return len(self.ids) / self.seconds


def decoded_result(row: Generation, seconds: float) -> Decoded:
    """The answer of a finished row. seconds: wall time of the call."""
    count = row.forwards
    nfe = NFE(count["prefill"], count["draft"], count["verify"])
    return Decoded(row.prompt, row.tokens, nfe, row.gains, row.steps, seconds)

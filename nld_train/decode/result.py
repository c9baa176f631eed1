"""What decoding gives back, the same for every mode."""

from dataclasses import dataclass

from nld_train.hf.rows_nemotron_labs_diffusion import Generation


@dataclass(frozen=True)
class NFE:
    """Forwards of the model that one row took part in."""

    prefill: int  # causal, of the prompt
    draft_or_denoise: int  # without a causal mask: drafts of linear self-speculation, denoising steps of diffusion
    verify_or_refresh: int  # causal: verifications, refreshes of finished blocks, the single tokens of AR

    @property
    def total(self) -> int:
        return self.prefill + self.draft_or_denoise + self.verify_or_refresh


@dataclass(frozen=True)
class Decoded:
    """One prompt's answer."""

    prompt: list[int]
    ids: list[int]  # generated tokens
    nfe: NFE
    accepted_lengths: list[int]  # tokens that each verification added: accepted drafts and one of its own
    order: list[int]  # the row's forward that gave each token, the prefill being 1: the order of commitment
    seconds: float  # wall time of the call, which the rows of one batch share
    text: str | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens over all forwards, the prefill included, because it yields a token in every mode: exactly 1
        for AR. (The published figures of block diffusion leave the prefill out.)"""
        return len(self.ids) / self.nfe.total

    @property
    def tokens_per_second(self) -> float:
        """Of this row alone, in a batch whose rows were decoded at the same time."""
        return len(self.ids) / self.seconds


def decoded_result(row: Generation, seconds: float) -> Decoded:
    """The result of a finished row."""
    count = row.forwards
    nfe = NFE(count["prefill"], count["draft"], count["verify"])
    return Decoded(row.prompt, row.tokens, nfe, row.gains, row.steps, seconds)

"""The settings of decoding: one default, one place, checked here."""

from dataclasses import dataclass

from nld_train.errors import require
from nld_train.setting_ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How text is generated. Every mode reads the settings that it has a use for."""

    max_new_tokens: int = 128  # per prompt; whole blocks in diffusion mode
    block_length: int = 32  # tokens denoised or drafted together; quadratic mode gives block_length^2 masks a forward
    temperature: float = 0.0  # 0: the most probable token
    top_p: float = 1.0  # share of the probability that is drawn from
    seed: int = 1234
    threshold: float | None = 0.9  # diffusion: commit every token with this probability; none: none for it
    forwards_per_block: int | None = None  # diffusion: at most; none: as many as the block has masks
    revise: int = 0  # diffusion: rounds at most that mask the least certain quarter of a finished block again
    sampler: bool = False  # diffusion: the model's trained sampler says how sure a token is, instead of its probability
    draft_threshold: float = 0.0  # linear self-speculation: a draft stops where no token has this probability
    ensemble_weight: float = 0.0  # quadratic: lambda, the verifier is (1 - lambda) * AR + lambda * diffusion
    eos_token_id: tuple[int, ...] | None = None  # any of them ends the text; none: the model's own
    max_thinking_tokens: int | None = None  # none: no budget
    end_think_token_id: int | None = None

    def __post_init__(self) -> None:
        check_ranges("decode", self)
        got = f"sampler=true with temperature={self.temperature:g}"
        greedy = "temperature=0: a trained sampler judges the most probable token alone"
        require(not self.sampler or self.temperature == 0, got, greedy, "leave one of the two out")

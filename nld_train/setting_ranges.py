"""The range of every numeric setting of a run and of decoding, in one table. What depends on two settings is checked
in config.py."""

from dataclasses import dataclass, fields

from nld_train.errors import require

DERIVED = -1  # iterations that nobody gave: they follow from a number of tokens
LARGEST = 2**31 - 1  # of a token id, a size and a seed: what int32 holds
STEPS = 10**9  # more iterations than any run takes
BLOCK = 2**20  # tokens
FACTOR = 1e9
MONTH = 43_200  # minutes


@dataclass(frozen=True)
class NumberRange:
    """The numbers from `low` to `high`."""

    low: float
    high: float
    low_excluded: bool = False
    high_excluded: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN never does."""
        above = self.low < value if self.low_excluded else self.low <= value
        return above and (value < self.high if self.high_excluded else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:_}" if self.low_excluded else f"{self.low:_}"
        if self.high_excluded:
            return f"{low}, below {self.high:_}" if self.low_excluded else f"{low} or more, below {self.high:_}"
        return f"{low}, at most {self.high:_}" if self.low_excluded else f"{low} to {self.high:_}"


def whole_from(low: int, high: int = LARGEST) -> NumberRange:
    return NumberRange(low, high)


def above_zero(high: float) -> NumberRange:
    return NumberRange(0, high, low_excluded=True)


SHARE = NumberRange(0, 1)
BELOW_ONE = NumberRange(0, 1, high_excluded=True)
SEED = COUNT = whole_from(0)
SIZE = whole_from(1)
RANGES = {
    "init_step": whole_from(0, STEPS),
    "diffusion.alpha": NumberRange(0, FACTOR),
    "diffusion.ar_weight": NumberRange(0, FACTOR),
    "diffusion.level_rows": whole_from(1, 10**7),
    "diffusion.block_size": whole_from(1, BLOCK),
    "diffusion.mask_token_id": COUNT,
    "diffusion.noise_eps": NumberRange(0, 1, low_excluded=True, high_excluded=True),
    "diffusion.noise_seed": SEED,
    "model.layers": SIZE,
    "model.hidden": SIZE,
    "model.ffn": SIZE,
    "model.heads": SIZE,
    "model.kv_heads": SIZE,
    "model.head_dim": SIZE,
    "model.vocab_size": SIZE,
    "model.norm_eps": above_zero(1),
    "model.init_std": above_zero(1e3),
    "model.rope.theta": above_zero(1e15),
    "model.rope.factor": NumberRange(1, 1e6),
    "model.rope.original_max_position": SIZE,
    "model.rope.beta_fast": above_zero(FACTOR),
    "model.rope.beta_slow": above_zero(FACTOR),
    "model.rope.mscale": NumberRange(0, FACTOR),
    "model.rope.mscale_all_dim": NumberRange(0, FACTOR),
    "model.rope.query_scale_beta": NumberRange(0, FACTOR),
    "data.sequence_length": SIZE,
    "data.text_length": SIZE,
    "data.skip_rows": whole_from(0, 10**13),
    "data.workers": whole_from(0, 1024),
    "data.shuffle_seed": SEED,
    "train.tokens": NumberRange(0, 1e16, low_excluded=True),
    "train.iterations": whole_from(1, STEPS),
    "train.global_batch": whole_from(1, 10**7),
    "train.micro_batch": whole_from(1, 10**7),
    "train.eval_interval": whole_from(1, STEPS),
    "train.eval_batches": whole_from(0, 10**6),
    "train.eval_decode": whole_from(0, 10**6),
    "train.seed": SEED,
    "optimizer.lr": above_zero(1e15),  # the test of losses that are no number needs such a one
    "optimizer.min_lr": NumberRange(0, 100),
    "optimizer.warmup_tokens": NumberRange(0, 1e16, low_excluded=True),
    "optimizer.warmup_iterations": whole_from(0, STEPS),
    "optimizer.decay_tokens": NumberRange(0, 1e16, low_excluded=True),
    "optimizer.decay_iterations": whole_from(0, STEPS),
    "optimizer.weight_decay": NumberRange(0, 100),
    "optimizer.beta1": BELOW_ONE,
    "optimizer.beta2": BELOW_ONE,
    "optimizer.eps": above_zero(1),
    "optimizer.clip_grad": above_zero(FACTOR),
    "parallel.tensor": whole_from(1, 10**6),
    "parallel.pipeline": whole_from(1, 10**6),
    "parallel.virtual_pipeline": whole_from(1, 10**6),
    "parallel.context": whole_from(1, 10**6),
    "parallel.world_size": whole_from(1, 10**6),
    "parallel.timeout_minutes": whole_from(1, MONTH),
    "checkpoint.interval": whole_from(1, STEPS),
    "checkpoint.keep": whole_from(1, STEPS),
    "log.interval": whole_from(1, STEPS),
    "log.spike": NumberRange(0, FACTOR),
    "drafter.rank": SIZE,
    "drafter.alpha": above_zero(FACTOR),
    "drafter.dropout": BELOW_ONE,
    "drafter.place_decay": above_zero(1),
    "drafter.first_error_weight": above_zero(FACTOR),
    "drafter.tau": above_zero(FACTOR),
    "drafter.top_k": SIZE,
    "drafter.sampled_share": SHARE,
    "drafter.blocks_per_row": SIZE,
    "sampler.layers": SIZE,
    "sampler.width": SIZE,
    "sampler.ffn": SIZE,
    "sampler.heads": SIZE,
    "sampler.dropout": BELOW_ONE,
    "sampler.patience": COUNT,
    "vision.layers": SIZE,
    "vision.hidden": SIZE,
    "vision.ffn": SIZE,
    "vision.heads": SIZE,
    "vision.patch_size": SIZE,
    "vision.merge": SIZE,
    "vision.longest_edge": whole_from(1, 2**16),
    "vision.theta": above_zero(1e15),
    "vision.image_token_id": COUNT,
    "vision.break_token_id": COUNT,
    "vision.end_token_id": COUNT,
    "decode.max_new_tokens": SIZE,
    "decode.block_length": whole_from(1, BLOCK),
    "decode.temperature": NumberRange(0, FACTOR),
    "decode.top_p": above_zero(1),
    "decode.seed": SEED,
    "decode.threshold": SHARE,
    "decode.forwards_per_block": whole_from(1, BLOCK),
    "decode.revise": COUNT,
    "decode.draft_threshold": SHARE,
    "decode.ensemble_weight": SHARE,
    "decode.eos_token_id": COUNT,
    "decode.max_thinking_tokens": COUNT,
    "decode.end_think_token_id": COUNT,
}


def check_ranges(section: str, settings: object) -> None:
    """Raise UserError unless every numeric setting of a section lies in its range, and each of several numbers. None
    does, and so do iterations that are to follow from tokens. section: "" for the run itself."""
    assert hasattr(settings, "__dataclass_fields__"), f"{section} is no section of settings"
    for entry in fields(settings):  # type: ignore[arg-type]
        key = f"{section}.{entry.name}".removeprefix(".")
        if key not in RANGES:
            continue
        given = vars(settings)[entry.name]
        derived = given == DERIVED and (key.endswith("_iterations") or key == "train.iterations")
        for value in given if isinstance(given, tuple) else () if given is None or derived else (given,):
            require(RANGES[key].holds(value), f"{key}={value}", str(RANGES[key]), f"set {key}")


def split_shares(split: str) -> list[float]:
    """ "99,1,0" -> [0.99, 0.01, 0.0]. Raises UserError unless data.split is three shares, with one of training above
    0."""
    try:
        shares = [float(share) for share in split.split(",")]
    except ValueError:
        shares = []
    good = len(shares) == 3 and all(NumberRange(0, FACTOR).holds(share) for share in shares) and shares[0] > 0
    require(
        good,
        f"data.split={split!r}",
        "three numbers, shares of training, validation and test, of which training's is above 0",
        "write for example 99,1,0",
    )
    return [share / sum(shares) for share in shares]

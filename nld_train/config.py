"""Every setting of a run: one default, one place, checked here. After this door nothing has a fallback."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from nld_train.errors import UserError

NoiseLaw = Literal["uniform", "stratified", "per_block", "complementary"]
LossAverage = Literal["token", "sequence"]
AttentionBackend = Literal["auto", "reference", "sdpa", "flex"]
Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
WandbMode = Literal["auto", "online", "offline", "disabled"]


def require(ok: bool, got: str, allowed: str, do: str) -> None:
    """Raise UserError unless `ok`."""
    if not ok:
        raise UserError(got, allowed, do)


def require_choice(name: str, value: str, choices: object) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name}={value!r}", ", ".join(allowed), "choose one of them")


def require_positive(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value > 0, f"{section}.{name}={value}", "numbers above 0", f"set {section}.{name}")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The objective and its noise [paper eq. 2, eq. 5, table 1]."""

    alpha: float = 0.3  # weight of the diffusion term; 0: only the clean half is run (plain AR)
    block_size: int = 32  # tokens denoised together
    mask_token_id: int = 100
    noise_law: NoiseLaw = "uniform"
    noise_eps: float = 1e-3  # p = (1 - eps) * t + eps
    noise_seed: int = 1234
    average: LossAverage = (
        "token"  # token: one denominator for the global batch [eq. 5]; sequence: rows count equally [eq. 4]
    )
    document_mask: bool = False  # packed documents of a row do not see each other

    def __post_init__(self) -> None:
        require_choice("diffusion.noise_law", self.noise_law, NoiseLaw)
        require_choice("diffusion.average", self.average, LossAverage)
        require_positive("diffusion", self, "block_size")
        require(
            self.alpha >= 0, f"diffusion.alpha={self.alpha}", "0 or more", "use 0 for AR alone, 0.3 for a joint stage"
        )
        require(0 < self.noise_eps < 1, f"diffusion.noise_eps={self.noise_eps}", "above 0, below 1", "use 1e-3")
        require(
            self.mask_token_id >= 0,
            f"diffusion.mask_token_id={self.mask_token_id}",
            "a token id",
            "use the tokenizer's mask id (100 in the published family)",
        )

    @property
    def dual(self) -> bool:
        """Whether the model is given [noisy | clean] (a joint stage) or the clean half alone."""
        return self.alpha > 0


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """YaRN rotary embedding and the Llama-4 style query scale."""

    theta: float = 1e6
    factor: float = 16.0
    original_max_position: int = 16_384
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    query_scale_beta: float = 0.1  # q * (1 + beta * ln(1 + floor(position / original_max_position)))

    @property
    def max_position(self) -> int:
        return int(self.factor * self.original_max_position)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network. The head is never tied to the embedding."""

    layers: int
    hidden: int
    ffn: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 131_072
    norm_eps: float = 1e-5
    init_std: float = 0.02
    rope: RopeConfig = field(default_factory=RopeConfig)

    def __post_init__(self) -> None:
        require_positive("model", self, "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab_size")
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} with model.kv_heads={self.kv_heads}",
            "heads a multiple of kv_heads",
            "change one of them",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Token files made by `nld data prepare`, and how rows are cut from them."""

    blend: tuple[str, ...]  # "prefix" or "weight:prefix", e.g. ("0.7:data/web", "0.3:data/code")
    tokenizer: str  # folder with tokenizer.json: must be the one the files were made with
    sequence_length: int = 4096  # tokens
    split: str = "99,1,0"  # shares of training, validation and test documents
    workers: int = 2  # loader processes per rank
    shuffle_seed: int = 1234

    def __post_init__(self) -> None:
        require_positive("data", self, "sequence_length")
        require(
            len(self.blend) > 0, "data.blend is empty", "one prefix or more", "name the files of `nld data prepare`"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    iterations: int  # optimizer steps
    global_batch: int  # rows per step, over all ranks
    micro_batch: int = 1  # rows per forward on one rank
    eval_interval: int = 1000  # steps; the validation rows are the same every time
    eval_batches: int = 8  # global batches per evaluation; 0: never evaluate
    precision: Precision = "bf16"
    attention: AttentionBackend = "auto"  # auto: flex on GPUs, sdpa on CPUs
    seed: int = 1234  # weights and dropout; the noise has its own seed

    def __post_init__(self) -> None:
        require_positive("train", self, "iterations", "global_batch", "micro_batch", "eval_interval")
        require_choice("train.precision", self.precision, Precision)
        require_choice("train.attention", self.attention, AttentionBackend)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW under a warm-up, stable, decay schedule (WSD)."""

    lr: float
    min_lr: float
    warmup_iterations: int
    decay_iterations: int  # length of the decay, at the end of the run; 0: none in this stage
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        require_positive("optimizer", self, "lr", "clip_grad")
        require(
            0 <= self.min_lr <= self.lr,
            f"optimizer.min_lr={self.min_lr} with optimizer.lr={self.lr}",
            "0 <= min_lr <= lr",
            "lower min_lr",
        )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one replica of the model is cut; data parallelism is whatever ranks are left."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1  # model chunks per pipeline stage
    context: int = 1
    sequence: bool = False  # sequence parallelism, with tensor > 1
    distributed_optimizer: bool = True
    recompute: Recompute = "none"
    world_size: int = 1  # ranks the recipe is planned for; `--nproc` sets it on one machine

    def __post_init__(self) -> None:
        require_positive("parallel", self, "tensor", "pipeline", "virtual_pipeline", "context", "world_size")
        require_choice("parallel.recompute", self.recompute, Recompute)

    @property
    def model_ranks(self) -> int:
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        return self.world_size // self.model_ranks


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    interval: int = 1000  # steps
    keep: int = 3  # newest checkpoints kept
    asynchronous: bool = False


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    interval: int = 10  # steps
    wandb: WandbMode = "auto"  # auto: online where a login is found, offline elsewhere
    wandb_project: str = "nld-train"

    def __post_init__(self) -> None:
        require_choice("log.wandb", self.wandb, WandbMode)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How text is generated. Every mode reads the settings that it has a use for."""

    max_new_tokens: int = 128  # per prompt; whole blocks in diffusion mode
    block_length: int = 32  # tokens denoised or drafted together; quadratic mode gives block_length^2 masks a forward
    temperature: float = 0.0  # 0: the most probable token
    top_p: float = 1.0  # share of the probability that is drawn from
    seed: int = 1234
    threshold: float | None = 0.9  # diffusion: commit every token with this probability; none: an even share per step
    steps_per_block: int | None = None  # diffusion without threshold; none: block_length
    draft_threshold: float = 0.0  # linear self-speculation: a draft stops where no token has this probability
    ensemble_weight: float = 0.0  # quadratic: lambda, the verifier is (1 - lambda) * AR + lambda * diffusion
    eos_token_id: int | None = None  # none: the model's own
    max_thinking_tokens: int | None = None  # none: no budget
    end_think_token_id: int | None = None

    def __post_init__(self) -> None:
        require_positive("decode", self, "max_new_tokens", "block_length")
        require(self.temperature >= 0, f"decode.temperature={self.temperature}", "0 or more", "use 0 for greedy")
        require(0 < self.top_p <= 1, f"decode.top_p={self.top_p}", "above 0, at most 1", "use 1 to draw from all")
        require(
            0 <= self.ensemble_weight <= 1,
            f"decode.ensemble_weight={self.ensemble_weight}",
            "0 to 1",
            "use 0 to verify with AR alone",
        )
        if self.steps_per_block is not None:
            require_positive("decode", self, "steps_per_block")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole: what a recipe file builds and `nld train` prints."""

    name: str
    output: str  # folder of checkpoints, logs and the frozen configuration
    init: str | None = None  # run or checkpoint folder whose weights the run starts from; None: random weights
    model: ModelConfig
    diffusion: DiffusionConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_layout(self)
        check_training(self)


def check_layout(run: RunConfig) -> None:
    """Refuse a parallel layout that cannot hold this model and batch."""
    cut, model, train = run.parallel, run.model, run.train
    require(
        cut.world_size % cut.model_ranks == 0,
        f"parallel.world_size={cut.world_size} with tensor x pipeline x context = {cut.model_ranks}",
        "a multiple of the product",
        "change world_size or the cut",
    )
    step_rows = train.micro_batch * cut.data
    require(
        train.global_batch % step_rows == 0,
        f"train.global_batch={train.global_batch} with micro_batch x data ranks = {step_rows}",
        "a multiple of the product",
        f"use {max(1, train.global_batch // step_rows) * step_rows}",
    )
    stages = cut.pipeline * cut.virtual_pipeline
    require(
        model.layers % stages == 0,
        f"model.layers={model.layers} with pipeline x virtual_pipeline = {stages}",
        f"divisors of {model.layers}",
        "change parallel.pipeline or parallel.virtual_pipeline",
    )
    require(
        cut.virtual_pipeline == 1 or cut.pipeline > 1,
        f"parallel.virtual_pipeline={cut.virtual_pipeline} with parallel.pipeline=1",
        "virtual_pipeline 1 unless pipeline is 2 or more",
        "set parallel.virtual_pipeline=1",
    )
    for name, count in (("kv_heads", model.kv_heads), ("ffn", model.ffn), ("vocab_size", model.vocab_size)):
        require(
            count % cut.tensor == 0,
            f"parallel.tensor={cut.tensor} with model.{name}={count}",
            f"divisors of {count}",
            "lower parallel.tensor",
        )
    require(
        not cut.sequence or cut.tensor > 1,
        "parallel.sequence=True with parallel.tensor=1",
        "sequence parallelism together with tensor > 1",
        "set parallel.sequence=False",
    )


def check_training(run: RunConfig) -> None:
    """Refuse numbers that contradict each other across sections."""
    mask = run.diffusion.mask_token_id
    require(
        mask < run.model.vocab_size,
        f"diffusion.mask_token_id={mask}",
        f"ids below model.vocab_size={run.model.vocab_size}",
        "use the tokenizer's mask id",
    )
    require(
        run.diffusion.block_size <= run.data.sequence_length,
        f"diffusion.block_size={run.diffusion.block_size}",
        f"at most data.sequence_length={run.data.sequence_length}",
        "lower the block size",
    )
    require(
        run.data.sequence_length <= run.model.rope.max_position,
        f"data.sequence_length={run.data.sequence_length}",
        f"at most the model's {run.model.rope.max_position} positions",
        "shorten the rows or raise model.rope.factor",
    )
    scheduled = run.optimizer.warmup_iterations + run.optimizer.decay_iterations
    require(
        scheduled <= run.train.iterations,
        f"optimizer.warmup_iterations + decay_iterations = {scheduled}",
        f"at most train.iterations={run.train.iterations}",
        "shorten the warm-up or the decay",
    )

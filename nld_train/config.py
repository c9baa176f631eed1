"""Every setting of a run: one default, one place, checked here. Nothing that reads a run has a fallback."""

from dataclasses import dataclass, field
from typing import Literal

from nld_train import parallel_layout
from nld_train.errors import UserError, require, require_choice
from nld_train.fp8_recipes import Fp8Recipe, check_fp8
from nld_train.objective_sections import DrafterConfig, ObjectiveSection, SamplerConfig
from nld_train.setting_ranges import DERIVED, check_ranges, split_shares
from nld_train.token_budget import derive_iterations
from nld_train.vision_config import VisionConfig

NoiseLaw = Literal["uniform", "stratified", "per_block", "complementary"]
LossAverage = Literal["token", "sequence"]
AttentionBackend = Literal[
    "auto", "reference", "sdpa", "flex", "flex+fa4", "te", "te+near_flex", "te+flex", "te+mod", "cudnn_flex", "fa3"
]
Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
LongConversations = Literal["cut", "drop"]
VerifyData = Literal["once", "never"]
MemoryTrial = Literal["auto", "always", "never"]
WandbMode = Literal["auto", "online", "required", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The objective and its noise [paper eq. 2, eq. 5, table 1]."""

    alpha: float = 0.3  # weight of the diffusion term; 0: only the clean half is run (plain AR)
    ar_weight: float = 1.0  # weight of the AR term; 0: diffusion alone, for comparison
    block_size: int = 32  # tokens denoised together
    mask_token_id: int = 100
    noise_law: NoiseLaw = "uniform"
    noise_eps: float = 1e-3  # p = (1 - eps) * t + eps
    noise_seed: int = 1234
    level_rows: int = (
        1  # consecutive rows that share one noise level, with the uniform law; more than 1: for comparison
    )
    average: LossAverage = "token"  # token: the global batch has one denominator [eq. 5]; sequence: each row [eq. 4]
    document_mask: bool = False  # packed documents of a row do not see each other

    def __post_init__(self) -> None:
        require_choice("diffusion.noise_law", self.noise_law, NoiseLaw)
        require_choice("diffusion.average", self.average, LossAverage)
        check_ranges("diffusion", self)
        require(
            self.ar_weight > 0 or self.alpha > 0,
            "diffusion.ar_weight=0 with diffusion.alpha=0",
            "one of the two terms at least",
            "set one of them above 0",
        )
        require(
            self.level_rows == 1 or self.noise_law == "uniform",
            f"diffusion.level_rows={self.level_rows} with diffusion.noise_law={self.noise_law}",
            "1: the other laws say themselves which levels belong together",
            "set diffusion.level_rows=1, or diffusion.noise_law=uniform",
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

    def __post_init__(self) -> None:
        check_ranges("model.rope", self)

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
        check_ranges("model", self)
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} with model.kv_heads={self.kv_heads}",
            "heads a multiple of kv_heads",
            "change one of them",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The token files that `nld data prepare` or `prepare-chat` made, and how rows are made of them."""

    blend: tuple[str, ...]  # "prefix" or "weight:prefix", e.g. ("0.7:data/web", "0.3:data/code")
    tokenizer: str  # folder with tokenizer.json: must be the one the files were made with
    sequence_length: int = 4096  # tokens
    text_length: int | None = None  # with images: most text tokens of a row, its noisy half; none: sequence_length
    split: str = "99,1,0"  # shares of training, validation and test documents
    chat: bool = False  # files of `nld data prepare-chat`: whole conversations packed into rows, answers supervised
    long_conversations: LongConversations = "cut"  # chat: one longer than a row loses its end (cut), or is left out
    workers: int = 2  # loader processes per rank
    shuffle_seed: int = 1234
    skip_rows: int = 0  # training rows of the blend before the run's first: those of an earlier stage on the same data
    verify: VerifyData = "once"  # once: each file is compared with its SHA-256 once per machine; never: sizes alone

    def __post_init__(self) -> None:
        check_ranges("data", self)
        require(
            self.text_length is None or self.text_length <= self.sequence_length,
            f"data.text_length={self.text_length} with data.sequence_length={self.sequence_length}",
            "at most the row's length",
            "lower it, or leave it out",
        )
        split_shares(self.split)
        require(
            len(self.blend) > 0, "data.blend is empty", "one prefix or more", "name the files of `nld data prepare`"
        )
        require_choice("data.long_conversations", self.long_conversations, LongConversations)
        require_choice("data.verify", self.verify, VerifyData)

    @property
    def noisy_length(self) -> int:
        """L_text: tokens of a row's noisy half."""
        return self.sequence_length if self.text_length is None else self.text_length


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and on what batches a run trains. Its length is given in tokens, or in iterations."""

    tokens: int | None = None  # row tokens of the run, 300e9 say, which make its iterations; none: those are given
    iterations: int = DERIVED  # optimizer steps
    global_batch: int  # rows per step, over all ranks
    micro_batch: int = 1  # rows per forward on one rank
    eval_interval: int = 1000  # steps; the validation rows are the same every time
    eval_batches: int = 8  # global batches per evaluation; 0: never evaluate
    eval_decode: int = 2  # joint stages: validation rows whose blocks are drafted too, for accepted length; 0: none
    precision: Precision = "bf16"
    fp8: Fp8Recipe = "none"  # the layers' linear maps in FP8, with precision bf16; which scaling: nld_train/fp8_recipes
    attention: AttentionBackend = "auto"  # auto: flex on GPUs, sdpa on CPUs
    memory_trial: MemoryTrial = "auto"  # a batch at full masking before the first step of a start; auto: on GPUs
    deterministic: bool = False  # only kernels that give the same bits every time, which are slower; on GPUs
    seed: int = 1234  # weights and dropout; the noise has its own seed

    def __post_init__(self) -> None:
        check_ranges("train", self)
        require_choice("train.precision", self.precision, Precision)
        require_choice("train.fp8", self.fp8, Fp8Recipe)
        require_choice("train.attention", self.attention, AttentionBackend)
        require_choice("train.memory_trial", self.memory_trial, MemoryTrial)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW under a warm-up, stable, decay schedule (WSD). Warm-up and decay are given in tokens, or in iterations."""

    lr: float
    min_lr: float
    warmup_tokens: int | None = None  # row tokens, which make warmup_iterations; none: those are given
    warmup_iterations: int = DERIVED  # steps at the start of the run; 0: no warm-up
    decay_tokens: int | None = None  # row tokens, which make decay_iterations; none: those are given
    decay_iterations: int = DERIVED  # steps at the end of the run; 0: no decay in this stage
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        check_ranges("optimizer", self)
        require(
            0 <= self.min_lr <= self.lr,
            f"optimizer.min_lr={self.min_lr} with optimizer.lr={self.lr}",
            "0 <= min_lr <= lr",
            "lower min_lr",
        )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one replica of the model is cut over ranks. The ranks that are left make data parallelism."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1  # model chunks per pipeline stage
    context: int = 1
    sequence: bool = False  # sequence parallelism, with tensor > 1
    distributed_optimizer: bool = True
    recompute: Recompute = "none"
    world_size: int = 1  # ranks the recipe is planned for; `--nproc` sets it on one machine
    timeout_minutes: int = 10  # a rank that waits longer for another one gives up; a save is the longest wait there is

    def __post_init__(self) -> None:
        check_ranges("parallel", self)
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
    asynchronous: bool = False  # write beside the training; it counts once written, as every checkpoint does

    def __post_init__(self) -> None:
        check_ranges("checkpoint", self)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    interval: int = 10  # steps
    wandb: WandbMode = "auto"  # auto: online with a login; required: stops where W&B fails; others go on, offline
    wandb_project: str = "nld-train"
    spike: float = 5.0  # times the median of the last 100 gradient norms logged: such a step is warned of; 0: none is

    def __post_init__(self) -> None:
        require_choice("log.wandb", self.wandb, WandbMode)
        check_ranges("log", self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One whole run: a recipe file builds it, and `nld train` prints it.

    Where a length is given in tokens, its iterations are worked out here, so every reader finds them in
    `train.iterations`, `optimizer.warmup_iterations` and `optimizer.decay_iterations`.
    """

    name: str
    output: str  # folder of checkpoints, logs and the frozen configuration
    init: str | None = None  # run, import or Hugging Face folder whose weights the run starts from; None: random
    init_step: int | None = None  # which of its checkpoints; None: the newest, which must be whole
    init_optimizer: bool = False  # start from the moments of init's optimizer too, so that one schedule goes on
    model: ModelConfig
    diffusion: DiffusionConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    drafter: DrafterConfig | None = None  # train the drafter's adapter, and nothing else; none: the model itself
    sampler: SamplerConfig | None = None  # train the sampler's network, and nothing else; the model is not loaded
    vision: VisionConfig | None = None  # a vision tower in front of the model; none: text alone

    def __post_init__(self) -> None:
        step_tokens = self.train.global_batch * self.data.sequence_length
        object.__setattr__(self, "train", derive_iterations("train", self.train, step_tokens))
        object.__setattr__(self, "optimizer", derive_iterations("optimizer", self.optimizer, step_tokens))
        check_ranges("", self)
        named = self.init_step is None or self.init is not None
        require(named, f"init_step={self.init_step}, init={self.init!r}", "a step of a run that init names", "set both")
        if self.objective is not None:
            self.objective.check_run(self)
        if self.vision is not None:
            self.vision.check_run(self)
        check_layout(self)
        check_fp8(self.train.fp8, self.train.precision, self.drafter is not None, fp8_sizes(self))
        check_training(self)

    @property
    def positions(self) -> int:
        """S: positions of a row that the model is given, [noisy | clean] or the clean half alone."""
        return (self.data.noisy_length if self.diffusion.dual else 0) + self.data.sequence_length

    @property
    def objective(self) -> ObjectiveSection | None:
        """The optional section that says what is trained; None: the diffusion section. Raises: UserError for two."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, ObjectiveSection)}
        require(len(found) <= 1, f"the sections {', '.join(found)} at once", "one of them", "train one after the other")
        return next(iter(found.values()), None)


def check_layout(run: RunConfig) -> None:
    """Refuse a parallel layout that cannot hold this model and batch; name the nearest one that can."""
    model, cut = run.model, run.parallel
    needs = parallel_layout.LayoutConstraints(
        world_size=cut.world_size,
        global_batch=run.train.global_batch,
        layers=model.layers,
        kv_heads=model.kv_heads,
        ffn=model.ffn,
        vocab_size=model.vocab_size,
        length=run.data.sequence_length,
        angles=model.rope.original_max_position,
        positions=run.positions,
        dual=run.diffusion.dual,
        block_size=run.diffusion.block_size,
        packed=run.diffusion.document_mask,
        whole_network=run.objective is not None and run.objective.whole_network,
    )
    asked = parallel_layout.ParallelLayout(
        tensor=cut.tensor,
        pipeline=cut.pipeline,
        virtual_pipeline=cut.virtual_pipeline,
        context=cut.context,
        sequence=cut.sequence,
        micro_batch=run.train.micro_batch,
    )
    problem = parallel_layout.layout_problem(needs, asked)
    if problem is not None:
        raise UserError(*problem, parallel_layout.layout_advice(needs, asked))


def fp8_sizes(run: RunConfig) -> dict[str, int]:
    """The sizes of a rank's linear maps, and its positions, as FP8 products see them."""
    model, cut = run.model, run.parallel
    positions = run.train.micro_batch * run.positions // cut.context
    return {
        "model.hidden": model.hidden,
        "model.ffn / parallel.tensor": model.ffn // cut.tensor,
        "model.heads x head_dim / parallel.tensor": model.heads * model.head_dim // cut.tensor,
        "query, key and value / parallel.tensor": (model.heads + 2 * model.kv_heads) * model.head_dim // cut.tensor,
        "positions of a rank's micro-batch": positions // (cut.tensor if cut.sequence else 1),
    }


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
        run.train.global_batch % run.diffusion.level_rows == 0,
        f"diffusion.level_rows={run.diffusion.level_rows} with train.global_batch={run.train.global_batch}",
        "a divisor of the global batch, so that no two steps share a level",
        "change one of them",
    )
    require(
        run.vision is not None or run.data.text_length is None,
        f"data.text_length={run.data.text_length} without the section vision",
        "none: all tokens of a row are text",
        "leave it out",
    )
    require(
        run.diffusion.block_size <= run.data.noisy_length,
        f"diffusion.block_size={run.diffusion.block_size}",
        f"at most the row's {run.data.noisy_length} tokens of text",
        "lower the block size",
    )
    require(
        run.data.sequence_length <= run.model.rope.max_position,
        f"data.sequence_length={run.data.sequence_length}",
        f"at most the model's {run.model.rope.max_position} positions",
        "shorten the rows or raise model.rope.factor",
    )
    require(
        run.diffusion.document_mask or not run.data.chat,
        "data.chat=True with diffusion.document_mask=False",
        "conversations that do not see the others of their row",
        "set diffusion.document_mask=True",
    )
    require(
        run.init is not None or not run.init_optimizer,
        "init_optimizer=True without init",
        "the run whose optimizer goes on",
        "set init=, or init_optimizer=False",
    )
    scheduled = run.optimizer.warmup_iterations + run.optimizer.decay_iterations
    require(
        scheduled <= run.train.iterations,
        f"optimizer.warmup_iterations + decay_iterations = {scheduled}",
        f"at most train.iterations={run.train.iterations}",
        "shorten the warm-up or the decay",
    )

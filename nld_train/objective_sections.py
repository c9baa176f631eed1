"""The optional sections of a run: what it trains in place of the joint objective."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nld_train.errors import require, require_choice
from nld_train.setting_ranges import check_ranges

# How the trajectories that a sampler is trained on come about (nld_train/sampler).
CONFIDENCE, HYBRID = POLICIES = ("confidence", "hybrid")
# What a drafter is trained to lower (nld_train/loss/drafter_choices.py).
DrafterLoss = Literal["lk_hybrid", "first_failure", "all_places", "accepted_length"]
COMPONENTS = 44  # P: numbers of a compressed embedding; the paper's features are 144 = 3 P + 12


class ObjectiveSection:
    """An optional section of RunConfig: what is trained in place of the joint objective (nld_train/objectives)."""

    whole_network: ClassVar[bool] = False  # every rank must hold all layers and whole rows

    def check_run(self, run: Any) -> None:
        """Refuse a run, a RunConfig of config.py, that cannot be trained so. Raises: UserError."""


@dataclass(frozen=True, kw_only=True)
class DrafterConfig(ObjectiveSection):
    """LoRA on o_proj that is on while drafting, trained against the frozen model's own AR mode [paper sec. 3.3].

    A draft is one diffusion block: diffusion.block_size tokens, the seed and the drafted ones.
    """

    whole_network = True  # each step runs the network twice, the second time on what the first one drafted
    rank: int = 128  # [release]
    alpha: float = 512.0  # the adapter's output is scaled by alpha / rank [release]
    dropout: float = 0.0  # of the adapter's input [release]
    loss: DrafterLoss = "lk_hybrid"  # [paper]; the others were published since
    place_decay: float = 1.0  # weight of a place in the loss over that of the place before it; 1: all alike [paper]
    first_error_weight: float = 1.0  # of the first rejected place, times its weight as a place; 1: as any [paper]
    tau: float = 3.0  # temperature of both distributions in the hybrid loss and in the overlap
    top_k: int = 200  # most probable tokens of each model that the loss looks at
    sampled_share: float = 0.9  # of the blocks, drafted by sampling at temperature 1; the others by argmax
    adapter: str | None = None  # PEFT folder to start from, of this rank and alpha; none: from zero, the base's drafts
    blocks_per_row: int | None = None  # at most so many count, drawn at random; none: all; fewer save LM-head memory

    def __post_init__(self) -> None:
        require_choice("drafter.loss", self.loss, DrafterLoss)
        check_ranges("drafter", self)
        for name in ("place_decay", "first_error_weight"):
            weight = vars(self)[name]
            require(
                self.loss != "accepted_length" or weight == 1,
                f"drafter.{name}={weight} with drafter.loss=accepted_length",
                "1: the product of the acceptances weighs the places",
                f"leave drafter.{name} out, or set another drafter.loss",
            )

    def check_run(self, run: Any) -> None:
        """Refuse what a drafter cannot be trained with."""
        require(run.init is not None, f"{run.name} without init", "the folder of the model to draft for", "set init=")
        require(
            run.diffusion.dual,
            "diffusion.alpha=0 with a drafter",
            "the diffusion section of the joint stage: drafts are read in the doubled row",
            "set diffusion.alpha=0.3; the drafter's loss does not use its value",
        )
        require(
            run.diffusion.block_size > 1,
            f"diffusion.block_size={run.diffusion.block_size} with a drafter",
            "2 or more: a block is the seed token and at least one draft",
            "use the block size of the joint stage",
        )
        for name in ("pipeline", "context"):
            degree = getattr(run.parallel, name)
            require(
                degree == 1,
                f"parallel.{name}={degree} with a drafter",
                "1: each step runs the whole network twice, the second time on what the first one drafted",
                f"set parallel.{name}=1, and cut by parallel.tensor",
            )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(ObjectiveSection):
    """The network that judges, for every masked position, whether its top-1 is final [paper sec. 3.2, appendix A].

    A row is a trajectory of `nld sampler collect`, with all its steps; data.blend names their folder, and data.split
    its prompts. The model whose trajectories they are is not loaded.
    """

    whole_network = True
    layers: int = 4  # [paper]
    width: int = 384  # [paper]
    ffn: int = 768  # ours: it gives the paper's 4.8M parameters
    heads: int = 6  # ours
    dropout: float = 0.0  # ours
    attention: bool = True  # False: every position is judged alone, for comparison
    top_embedding: bool = True  # False: it is not told which token it judges, for comparison
    policies: tuple[str, ...] = ("confidence", "hybrid")  # whose trajectories train and validate
    patience: int = 5  # evaluations in a row without a better AUC, after which the run is finished; 0: never

    def __post_init__(self) -> None:
        check_ranges("sampler", self)
        got = f"sampler.width={self.width} with sampler.heads={self.heads}"
        even = self.width % (2 * self.heads) == 0
        require(even, got, "an even share of the width for each head", "change one of them")
        known = set(self.policies) <= set(POLICIES) and len(self.policies) > 0
        require(known, f"sampler.policies={self.policies}", f"one or more of {', '.join(POLICIES)}", "correct it")

    def check_run(self, run: Any) -> None:
        """Refuse what a sampler cannot be trained with, and settings that it would not read."""
        require(run.init is None, f"init={run.init!r} with a sampler", "none: its network starts at random", "leave it")
        fixed = {
            "diffusion.alpha": (run.diffusion.alpha, 0, "its rows have no noisy half"),
            "data.chat": (run.data.chat, False, "its rows are trajectories"),
            "data.skip_rows": (run.data.skip_rows, 0, "its rows are trajectories"),
            "train.precision": (run.train.precision, "fp32", "its network is small"),
            "parallel.tensor": (run.parallel.tensor, 1, "its network is small: cut the rows over the ranks"),
            "parallel.pipeline": (run.parallel.pipeline, 1, "its network is small: cut the rows over the ranks"),
            "parallel.context": (run.parallel.context, 1, "its network is small: cut the rows over the ranks"),
        }
        for name, (value, wanted, reason) in fixed.items():
            require(value == wanted, f"{name}={value} with a sampler", f"{wanted}: {reason}", f"set {name}={wanted}")
        require(len(run.data.blend) == 1, f"data.blend={run.data.blend}", "one folder of trajectories", "merge them")
        if self.patience:
            evaluated = run.train.eval_batches > 0
            require(evaluated, "sampler.patience with train.eval_batches=0", "evaluations", "set sampler.patience=0")
            require(
                run.checkpoint.interval == run.train.eval_interval and run.checkpoint.keep > self.patience,
                f"checkpoint.interval={run.checkpoint.interval} and keep={run.checkpoint.keep} with "
                f"train.eval_interval={run.train.eval_interval} and sampler.patience={self.patience}",
                "a checkpoint at every evaluation, and more of them than patience: the best one is exported",
                "set checkpoint.interval=train.eval_interval and checkpoint.keep above sampler.patience",
            )

"""The runs that studies are made of: the tiny model on short rows of the demo's text, on one CPU core each.

A run's folder is named by its settings, so that arms and studies that share a run train it once.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from nld_train.config import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    DrafterConfig,
    LogConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.fields import changed_settings
from nld_train.model_sizes import TINY

ROW = 128  # tokens
BATCH = 16  # rows
BLOCK = 16  # tokens
JUDGED = 8  # batches of held-out rows behind every figure
DRAFTED = 32  # of these rows, drafted for the accepted length
JUDGE_SEED = 1234  # rows and noise of the judge are the same for every arm and seed
UNMOVED = 1e-15  # a learning rate that moves no weight


@dataclass(frozen=True)
class Miniature:
    """Builds runs below a folder that holds the prepared data too."""

    folder: Path
    steps: int  # of a stage

    def ar_stage(self, seed: int) -> RunConfig:
        """Stage 1: left to right alone, at a constant learning rate behind the warm-up."""
        return self._run("ar", seed, None, DiffusionConfig(alpha=0.0, mask_token_id=100), self.steps, decay=0)

    def joint_stage(self, seed: int, diffusion: DiffusionConfig, what: str) -> tuple[RunConfig, RunConfig]:
        """Stages 1 and 2. what: the word for the folder of stage 2."""
        first = self.ar_stage(seed)
        joint = self._run(what, seed, first, diffusion, self.steps, decay=self.steps // 4)
        data = replace(joint.data, skip_rows=self.steps * BATCH)
        return first, self._placed(replace(joint, data=data))

    def only_joint_stage(self, seed: int, diffusion: DiffusionConfig) -> RunConfig:
        """The joint objective from random weights, on as many tokens as both stages read."""
        return self._run("one_stage", seed, None, diffusion, 2 * self.steps, decay=self.steps // 4)

    def chat_stage(self, seed: int, start: RunConfig, diffusion: DiffusionConfig, what: str) -> RunConfig:
        """SFT on conversations, of which the answers are supervised."""
        made = self._run(what, seed, start, replace(diffusion, document_mask=True), self.steps, decay=self.steps // 2)
        return self._placed(replace(made, data=self._chat_data(seed)))

    def drafter_stage(self, seed: int, start: RunConfig, drafter: DrafterConfig, what: str) -> RunConfig:
        """The drafter's adapter on a frozen model; evaluated before the first step and behind the last one."""
        made = self._run(what, seed, start, start.diffusion, self.steps // 2, decay=self.steps // 4)
        optimizer = replace(made.optimizer, weight_decay=0.0)
        train = replace(made.train, eval_batches=JUDGED)
        data = replace(made.data, skip_rows=2 * self.steps * BATCH)
        return self._placed(replace(made, optimizer=optimizer, train=train, data=data, drafter=drafter))

    def judge(self, start: RunConfig) -> RunConfig:
        """A run whose first evaluation judges `start`: the same rows and noise, and the same average, for all."""
        common = replace(start.diffusion, noise_law="uniform", level_rows=1, average="token", noise_seed=JUDGE_SEED)
        common = replace(common, alpha=0.3, ar_weight=1.0)
        made = self._run(f"judge_{start.name}", JUDGE_SEED, start, common, 1, decay=0)
        train = replace(made.train, eval_batches=JUDGED, eval_decode=DRAFTED, eval_interval=2)
        data = self._chat_data(JUDGE_SEED) if start.data.chat else made.data
        return self._placed(replace(made, train=train, data=data))

    def held_still(self, seed: int, start: RunConfig, diffusion: DiffusionConfig, batch: int, steps: int) -> RunConfig:
        """Steps that move no weight: their gradient norms are those of one model on fresh rows and fresh noise."""
        made = self._run(f"still_{diffusion.noise_law}_{batch}", seed, start, diffusion, steps, decay=0)
        optimizer = replace(made.optimizer, lr=UNMOVED, min_lr=0.0, warmup_iterations=0)
        train = replace(made.train, global_batch=batch)
        return self._placed(replace(made, optimizer=optimizer, train=train, log=replace(made.log, interval=1)))

    def _run(
        self, what: str, seed: int, start: RunConfig | None, diffusion: DiffusionConfig, steps: int, decay: int
    ) -> RunConfig:
        made = RunConfig(
            name=f"{what}_seed{seed}",
            output="",
            init=None if start is None else start.output,
            model=TINY,
            diffusion=replace(diffusion, noise_seed=seed),
            data=DataConfig(
                blend=(str(self.folder / "data" / "text"),),
                tokenizer=str(self.folder / "data" / "tokenizer"),
                sequence_length=ROW,
                split="90,10,0",
                workers=0,
                shuffle_seed=seed,
            ),
            train=TrainConfig(
                iterations=steps,
                global_batch=BATCH,
                micro_batch=8,
                eval_interval=steps,
                eval_batches=0,
                eval_decode=0,
                precision="fp32",
                seed=seed,
            ),
            optimizer=OptimizerConfig(
                lr=3e-3, min_lr=3e-4, warmup_iterations=min(10, steps // 4), decay_iterations=decay
            ),
            checkpoint=CheckpointConfig(interval=steps, keep=1),
            log=LogConfig(interval=10, wandb="disabled"),
        )
        return self._placed(made)

    def _chat_data(self, seed: int) -> DataConfig:
        return DataConfig(
            blend=(str(self.folder / "data" / "chat"),),
            tokenizer=str(self.folder / "data" / "tokenizer"),
            sequence_length=ROW,
            split="90,10,0",
            chat=True,
            workers=0,
            shuffle_seed=seed,
        )

    def _placed(self, run: RunConfig) -> RunConfig:
        """The run with its output folder: a name, and a digest of its settings but where the study lies.

        Settings at their defaults are left out, so that a setting that comes new moves no folder.
        """
        stated = {key: value for key, value in changed_settings(run).items() if key != "output"}
        digest = hashlib.blake2b(repr(stated).replace(str(self.folder), "").encode(), digest_size=4).hexdigest()
        return replace(run, output=str(self.folder / "runs" / f"{run.name}_{digest}"))

"""Starts real gloo ranks that train real runs, and reads what they logged."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from nld_train.config import (
    CheckpointConfig,
    DataConfig,
    DiffusionConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RopeConfig,
    RunConfig,
    TrainConfig,
)
from nld_train.recipe import run_to_json

DRIVER = Path(__file__).with_name("driver.py")
VOCABULARY = 400


def small_run(name: str, folder: Path, *, alpha: float, init: str | None, parallel: ParallelConfig) -> RunConfig:
    """A run of a few steps on the test corpus; positions pass the original maximum, so YaRN and query scale matter."""
    return RunConfig(
        name=name,
        output=str(folder / name),
        init=None if init is None else str(folder / init),
        model=ModelConfig(
            layers=4,
            hidden=64,
            ffn=128,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocab_size=VOCABULARY,
            rope=RopeConfig(theta=1e4, factor=4.0, original_max_position=16),
        ),
        diffusion=DiffusionConfig(alpha=alpha, block_size=8),
        data=DataConfig(
            blend=(f"0.7:{folder}/data/a", f"0.3:{folder}/data/b"),
            tokenizer=f"{folder}/tokenizer",
            sequence_length=64,
            split="80,20,0",
            workers=0,
        ),
        train=TrainConfig(
            iterations=4, global_batch=8, micro_batch=2, eval_interval=4, eval_batches=1, precision="fp32"
        ),
        optimizer=OptimizerConfig(lr=1e-3, min_lr=1e-4, warmup_iterations=0, decay_iterations=2),
        parallel=parallel,
        checkpoint=CheckpointConfig(interval=2),
        log=LogConfig(interval=1, wandb="disabled"),
    )


def on(ranks: int, **cut: int | bool) -> ParallelConfig:
    return ParallelConfig(world_size=ranks, **cut)  # type: ignore[arg-type]


def train_together(runs: Sequence[RunConfig], scratch: Path) -> None:
    """Train `runs`, all of one world size, one after another on the same ranks."""
    (ranks,) = {run.parallel.world_size for run in runs}
    frozen = [scratch / f"{run.name}.json" for run in runs]
    for path, run in zip(frozen, runs, strict=True):
        path.write_text(run_to_json(run))
    log = scratch / f"{runs[0].name}.log"
    driver = started_driver()
    assert driver.stdin is not None and driver.stdout is not None
    print(json.dumps({"ranks": ranks, "runs": [*map(str, frozen)], "log": str(log)}), file=driver.stdin, flush=True)
    answer = driver.stdout.readline().strip()
    assert answer == "0", f"status {answer or driver.poll()}\n{log.read_text()[-8000:] if log.is_file() else ''}"


@cache
def started_driver() -> subprocess.Popen[str]:
    """The process that forks ranks, for as long as this one lives: it ends with its input."""
    return subprocess.Popen(
        [sys.executable, str(DRIVER)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def logged(run: RunConfig, kind: str = "train") -> list[dict]:
    """metrics.jsonl of a run: its entries of a kind."""
    lines = (Path(run.output) / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def figures(run: RunConfig, kind: str = "train") -> list[tuple[float, ...]]:
    """What a run logged of every step (or evaluation) that no layout may change; the gradient norm comes last."""
    kept = ("AR loss", "diffusion loss", "total loss", "mask ratio", "gradient norm")
    return [tuple(entry[name] for name in kept if name in entry) for entry in logged(run, kind)]


def with_train(run: RunConfig, **changes: object) -> RunConfig:
    return replace(run, train=replace(run.train, **changes))  # type: ignore[arg-type]

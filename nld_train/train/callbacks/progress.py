"""What a person sees of a run, and metrics.jsonl: step, time left, tokens/s, the objective's figures, gradient norm."""

import json
import math
import time
from pathlib import Path
from typing import TextIO

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from nld_train.config import RunConfig
from nld_train.objectives.choose import objective_of
from nld_train.run_folder.metrics import SPIKE, entries_of_kind, read_metrics_so_far
from nld_train.run_folder.paths import METRICS
from nld_train.train.callbacks.spikes import SpikeDetector

NORM = "gradient norm"  # key in metrics.jsonl


class ProgressReporter(Callback):
    """Prints and records the run's progress on the last rank: only the last pipeline stage knows the losses.

    Figures are means over the steps since the last line, and stay on the device until they are printed, so that a step
    in between never waits for them. The last rank reports because it has the last pipeline stage.
    """

    def __init__(self, run: RunConfig, terminal: TextIO, *, active: bool) -> None:
        self.run, self.terminal, self.active = run, terminal, active
        self.objective = objective_of(run)
        self.metrics = Path(run.output) / METRICS
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.spikes = SpikeDetector(run.log.spike, _logged_norms(self.metrics) if active else [])
        self.clock = self.paused_at = 0.0
        self.learning_rate = math.nan  # of the step that is being taken
        self.evaluated: int | None = None  # step of the last evaluation reported
        console = Console(file=terminal, force_terminal=terminal.isatty())
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not (terminal.isatty() and active))
        self.task = self.bar.add_task(run.name, total=run.train.iterations, left="")

    def on_train_start(self, context: CallbackContext) -> None:
        """Start the clock and the bar."""
        self.clock = time.monotonic()
        self.bar.start()

    def on_train_end(self, context: CallbackContext) -> None:
        """Take the bar away."""
        self.bar.stop()

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Remember the step's learning rate: when it ends, the schedule has gone on to the next one's."""
        self.learning_rate = context.optimizer.param_groups[0]["lr"]

    def on_train_step_end(self, context: CallbackContext) -> None:
        """Add up the figures of the step, warn of a spike, and report where a report is due."""
        if not self.active:
            return
        for name, value in (context.loss_dict or {}).items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.steps += 1
        step = context.state.train_state.step + 1
        self.bar.update(self.task, completed=step)
        if context.grad_norm is not None:
            self._report_spike(step, float(context.grad_norm))
        if step % self.run.log.interval == 0 or step == self.run.train.iterations:
            self._report_steps(step, context)

    def on_eval_start(self, context: CallbackContext) -> None:
        """Stop the clock: an evaluation is no training time."""
        self.paused_at = time.monotonic()

    def on_eval_end(self, context: CallbackContext) -> None:
        """Let the clock go on, and report the evaluation."""
        self.clock += time.monotonic() - self.paused_at
        step = context.state.train_state.step
        if not self.active or step == self.evaluated:  # the loop evaluates twice where the last step is an evaluation's
            return
        self.evaluated = step
        values = {name: float(value) for name, value in (context.total_loss_dict or {}).items()}
        self._record({"step": step, "kind": "validation", **values})
        self._say(f"step {step:>7,}  validation  {self.objective.figures_text(values)}")

    def _report_spike(self, step: int, norm: float) -> None:
        before = self.spikes.median_if_spike(norm)
        if before is None:
            return
        # Rows are numbered through the run, a global batch after the other.
        rows = self.run.train.global_batch
        first, last = (step - 1) * rows, step * rows - 1
        values = {NORM: norm, "median": before, "first sample": first, "last sample": last}
        self._record({"step": step, "kind": SPIKE, **values})
        self._say(
            f"step {step:>7,}  warning: gradient norm {norm:.3f}, {norm / before:.1f} times its median {before:.3f}; "
            f"samples {first} to {last}"
        )

    def _report_steps(self, step: int, context: CallbackContext) -> None:
        now = time.monotonic()
        seconds = max(now - self.clock, 1e-9)
        values = {name: float(total) / self.steps for name, total in self.sums.items()}
        norm = math.nan if context.grad_norm is None else float(context.grad_norm)
        self.spikes.log(norm)
        tokens = self.run.train.global_batch * self.run.data.sequence_length * self.steps / seconds
        left = _clock_text((self.run.train.iterations - step) * seconds / self.steps)
        self._record(
            {
                "step": step,
                "kind": "train",
                **values,
                NORM: norm,
                "learning rate": self.learning_rate,
                "tokens/s": tokens,
            }
        )
        self.bar.update(self.task, left=f"{left} left")
        self._say(
            f"step {step:>7,}/{self.run.train.iterations:,}  {left} left  {tokens:>9,.0f} tokens/s  "
            f"{self.objective.figures_text(values)}  grad norm {norm:.3f}  lr {self.learning_rate:.2e}"
        )
        self.sums, self.steps, self.clock = {}, 0, now

    def _record(self, entry: dict) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(line, highlight=False, soft_wrap=True)
        self.terminal.flush()


def _logged_norms(metrics: Path) -> list[float]:
    """The gradient norms of a run's training steps so far."""
    entries = entries_of_kind(read_metrics_so_far(metrics), "train")
    return [entry[NORM] for entry in entries if NORM in entry]


def _clock_text(seconds: float) -> str:
    """ "4:05", "1:04:05" or "3d 01:04"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"

"""Figures of an evaluation that are no means, which the objective works out itself, and the end of a run by them."""

from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.utils.pg_utils import get_pg_collection

from nld_train.config import RunConfig
from nld_train.objectives.contract import Objective
from nld_train.run_folder.early_end import best_evaluation, record_early_end
from nld_train.run_folder.metrics import Entry, entries_of_kind, read_metrics_so_far
from nld_train.run_folder.paths import METRICS
from nld_train.train.terminal import tell_line


class EvaluatedFigures(Callback):
    """Lets the objective look at a whole evaluation, on every rank alike, and ends a run that gets no better.

    It must stand before the callback that reports: it adds to the dictionary that this one reads. The evaluations
    before a resume are those of metrics.jsonl, which every rank reads when it starts.
    """

    def __init__(self, run: RunConfig, objective: Objective, terminal: TextIO) -> None:
        self.run, self.objective, self.terminal = run, objective, terminal
        self.patience = objective.patience
        self.evaluated: list[Entry] = []  # ascending in steps; of a run that its evaluations may end
        if self.patience is not None:
            self.evaluated += entries_of_kind(read_metrics_so_far(Path(run.output) / METRICS), "validation")
        self.ended = False

    def on_eval_end(self, context: CallbackContext) -> None:
        """Add the objective's figures, and end the run where they have not got better for too long."""
        add_up = partial(torch.distributed.all_reduce, group=get_pg_collection(context.model).dp)
        figures = self.objective.evaluated_figures(add_up)
        if not figures:
            return
        assert context.total_loss_dict is not None, "an evaluation that ends has losses"
        device = torch.cuda.current_device()
        context.total_loss_dict.update({name: torch.tensor(value, device=device) for name, value in figures.items()})
        step = context.state.train_state.step
        if not self.evaluated or self.evaluated[-1]["step"] < step:  # the loop evaluates the last step twice
            self.evaluated.append({"step": step, **figures})
            self._end_if_no_better(step, context)

    def on_train_end(self, context: CallbackContext) -> None:
        """Leave out the last evaluation of a run that ended early: it was just made."""
        if self.ended:
            context.state.train_state.do_valid = False

    def _end_if_no_better(self, step: int, context: CallbackContext) -> None:
        if self.patience is None or step == 0 or step >= self.run.train.iterations:
            return
        name, patience = self.patience
        best = best_evaluation(self.evaluated, name)
        if sum(entry["step"] > best["step"] for entry in self.evaluated) < patience:
            return
        self.ended = True
        context.state.cfg.train.train_iters = step
        if torch.distributed.get_rank() == 0:
            record_early_end(Path(self.run.output), step, int(best["step"]), f"{name} {best[name]:.4f}")
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            said = f"best {name} {best[name]:.4f} at step {int(best['step']):,}"
            tell_line(self.terminal, f"step {step:,}: {said}, no better in {patience} evaluations: the run is finished")

"""Stopping on request: all ranks end after the same step, with a checkpoint."""

from datetime import timedelta

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from torch.distributed import ProcessGroup

from nld_train.config import RunConfig
from nld_train.run_folder.stop_file import stop_file
from nld_train.train.leave_watch import LeaveWatch


class StopOnRequest(Callback):
    """Ends the run after the step in which any rank was asked to stop, or the first one saw the stop file.

    Megatron-Bridge's own way knows one signal only, asks through the device, and leaves by an error. Here the loop is
    given fewer steps, so that it saves and ends as it does after its last one.
    """

    def __init__(self, run: RunConfig, watch: LeaveWatch) -> None:
        self.run, self.watch = run, watch
        self.group: ProcessGroup | None = None  # None: the default group, which is gloo on the CPU
        self.stopping = False

    def on_train_start(self, context: CallbackContext) -> None:
        """Make the group through which the ranks' hosts ask each other."""
        if torch.cuda.is_available():  # hosts ask hosts: no device is waited for
            timeout = timedelta(minutes=self.run.parallel.timeout_minutes)
            self.group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def on_train_step_start(self, context: CallbackContext) -> None:
        """Let the watch time the step."""
        self.watch.begin_step()

    def on_train_step_end(self, context: CallbackContext) -> None:
        """End the loop at this step where anybody asked for it."""
        step = context.state.train_state.step + 1
        if self._anybody_asked() and step < self.run.train.iterations:
            self.stopping = True
            context.state.cfg.train.train_iters = step
        self.watch.end_step()  # after the agreement, which waits for a lost rank as the step itself does

    def on_train_end(self, context: CallbackContext) -> None:
        """Leave out the last evaluation of a run that stops early."""
        if self.stopping:
            # The evaluation after the last step belongs to a finished run alone.
            context.state.train_state.do_valid = False

    def _anybody_asked(self) -> bool:
        here = self.watch.request.asked() or (torch.distributed.get_rank() == 0 and stop_file(self.run.output).exists())
        asked = torch.tensor([here], dtype=torch.int32)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(asked.item())

"""A stage that starts from the optimizer of the stage before it, and counts its own steps from 0."""

from pathlib import Path

from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.state import TrainState

from nld_train.config import RunConfig
from nld_train.run_folder.checkpoints import newest_complete_step


class CarriedOptimizer(Callback):
    """Makes a beginning of what Megatron-Bridge has loaded as a resume of `init`: weights, moments and Adam's count of
    its steps stay; the run's own steps, rows and schedule begin, under its own settings."""

    def __init__(self, run: RunConfig) -> None:
        assert carries_optimizer(run), f"{run.name} goes on from its own checkpoint, or starts from weights alone"
        self.settings = run.optimizer

    def on_data_init_start(self, context: CallbackContext) -> None:
        """Runs behind the load, and before the loaders ask how many rows were read."""
        optimizer, scheduler = context.optimizer, context.scheduler
        assert optimizer is not None and scheduler is not None, "Megatron-Bridge gives both to this event"
        context.state.train_state = TrainState()
        settings = self.settings
        for group in optimizer.param_groups:
            group.update(betas=(settings.beta1, settings.beta2), eps=settings.eps)
        scheduler.num_steps = 0
        scheduler.step(0)


def carries_optimizer(run: RunConfig) -> bool:
    """Whether this start reads `init`'s optimizer: a fresh one of a run with init_optimizer."""
    return run.init_optimizer and newest_complete_step(Path(run.output)) is None

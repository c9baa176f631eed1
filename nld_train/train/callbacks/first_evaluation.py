"""An evaluation before the first step: what the stage was given, on the rows of every later evaluation."""

from megatron.bridge.data.samplers import build_pretraining_data_loader
from megatron.bridge.training.callbacks import Callback, CallbackContext, CallbackManager
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.eval import evaluate_and_print_results
from megatron.core import parallel_state
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.utils import get_model_config

from nld_train.train.before_training import weights_as_they_are
from nld_train.train.dataset import RunRows
from nld_train.train.forward_step import ObjectiveStep


class FirstEvaluation(Callback):
    """Evaluates at step 0 of a fresh run. Megatron-Bridge's loop evaluates only after steps."""

    def __init__(self, forward_step: ObjectiveStep, callbacks: CallbackManager) -> None:
        self.forward_step, self.callbacks = forward_step, callbacks

    def on_train_start(self, context: CallbackContext) -> None:
        """Evaluate a fresh run before its first step, and leave no trace of it in the loop's own counts."""
        state = context.state
        if state.train_state.step > 0 or not state.train_state.do_valid:
            return
        with weights_as_they_are(context):
            evaluate_and_print_results(
                state,
                "the start",
                self.forward_step,
                _validation_batches(state.cfg),
                context.model,
                get_model_config(context.model[0]),
                callback_manager=self.callbacks,
            )
        # The loop's own evaluations count from 0: with or without this one they are the same.
        state.train_state.consumed_valid_samples = 0
        for chunk in context.model:
            chunk.train()


def _validation_batches(config: ConfigContainer) -> RerunDataIterator:
    """The validation rows from row 0 on, as the loop's own loader would give them."""
    rows = config.dataset.validation_rows
    assert isinstance(rows, RunRows), "the rows are built before training starts"
    loader = build_pretraining_data_loader(
        rows,
        consumed_samples=0,
        dataloader_type=config.dataset.dataloader_type,
        micro_batch_size=config.validation.eval_micro_batch_size,
        num_workers=0,
        data_sharding=config.dataset.data_sharding,
        collate_fn=rows.collate_fn,
        pin_memory=config.dataset.pin_memory,
        data_parallel_rank=parallel_state.get_data_parallel_rank(),
        data_parallel_size=parallel_state.get_data_parallel_world_size(),
    )
    return RerunDataIterator(iter(loader))

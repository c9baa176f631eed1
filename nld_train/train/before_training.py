"""What the callbacks that run the model before the first step share."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.bridge.training.callbacks import CallbackContext
from megatron.bridge.training.train import (
    disable_forward_pre_hook,
    enable_forward_pre_hook,
    should_disable_forward_pre_hook,
)
from megatron.core.utils import get_model_config


@contextmanager
def weights_as_they_are(context: CallbackContext) -> Iterator[None]:
    """Run forwards without gathering the weights from the distributed optimizer: before the first step they are whole
    on every rank. Megatron-Bridge's loop does the same in its first step."""
    config = context.state.cfg
    gathers_on_forward = should_disable_forward_pre_hook(
        config.ddp.use_megatron_fsdp, config.optimizer.use_distributed_optimizer, config.ddp.overlap_param_gather
    )
    if not gathers_on_forward:
        yield
        return
    model_config = get_model_config(context.model[0])
    gather = model_config.param_sync_func
    disable_forward_pre_hook(context.model, param_sync=False)
    model_config.param_sync_func = None
    yield
    model_config.param_sync_func = gather
    enable_forward_pre_hook(context.model)

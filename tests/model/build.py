"""A model of a run, whole on one real rank (fixture `one_rank`)."""

import torch

from nld_train.config import RunConfig


def build(run: RunConfig) -> torch.nn.Module:
    """Weights are random, and large enough that every part of the network shows in the result."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from nld_train.model.provider import model_provider

    maker = model_provider(run)
    maker.finalize()
    maker._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    torch.manual_seed(3)
    model = maker.provide(pre_process=True, post_process=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model

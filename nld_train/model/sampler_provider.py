"""The sampler's network as Megatron-Bridge trains it."""

from dataclasses import dataclass, fields

from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nld_train.config import RunConfig
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.model.provider import model_provider
from nld_train.model.provider_config import DualStreamConfig
from nld_train.objectives.sampler import sampler_shape


class SamplerModule(MegatronModule):
    """The network, which every rank holds whole."""

    def __init__(self, config: "SamplerProvider") -> None:
        super().__init__(config)
        self.network = SamplerNetwork(config.network_shape)

    def forward(self, features: Tensor, masked: Tensor, present: Tensor) -> Tensor:
        """Logits [N, B]. Dropout draws from Megatron's own generator, which a checkpoint brings back as it was: torch's
        is drawn from by loaders too."""
        with get_cuda_rng_tracker().fork():
            return self.network(features, masked, present)

    def set_input_tensor(self, input_tensor: object) -> None:
        """Megatron's pipeline calls this; there is one stage alone, which is given its batch."""


@dataclass(kw_only=True)
class SamplerProvider(DualStreamConfig):
    """Builds the network when Megatron-Bridge asks for it. What it says of a GPT is that of the model whose
    trajectories are trained on, which is not built."""

    network_shape: NetworkShape

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> SamplerModule:
        """The network, which has no stages."""
        return SamplerModule(self)


def sampler_provider(run: RunConfig, components: int) -> SamplerProvider:
    """The provider of a run's network, for embeddings of P components."""
    assert run.sampler is not None, f"{run.name} trains no sampler"
    base = model_provider(run)
    settings = {each.name: vars(base)[each.name] for each in fields(base) if each.init}
    return SamplerProvider(**settings, network_shape=sampler_shape(run.sampler, components))

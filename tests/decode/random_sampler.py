"""A trained sampler with random weights, and what it says of a block, written down a second time."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nld_train.decode.run import prompt_generators
from nld_train.decode.settings import DecodeConfig
from nld_train.hf.sampler_features_nemotron_labs_diffusion import CERTAIN, feature_count
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.hf.trained_sampler_nemotron_labs_diffusion import TrainedSampler, save_trained_sampler
from tests.decode.slow_blocks import SlowRow
from tests.sampler.slow_sampler import slow_statistics

COMPONENTS = 4
SHAPE = NetworkShape(feature_count(COMPONENTS), layers=2, width=16, ffn=24, heads=2)


def random_parts(vocab_size: int, seed: int = 0) -> tuple[SamplerNetwork, Tensor]:
    """A network whose judgements lie all over 0 to 1, and coordinates."""
    torch.manual_seed(seed)
    network = SamplerNetwork(SHAPE)
    with torch.no_grad():
        network.head.weight.mul_(8)
    return network, torch.randn(vocab_size, COMPONENTS).half()


def constant_parts(vocab_size: int, logit: float) -> tuple[SamplerNetwork, Tensor]:
    """A network that says the same of every position."""
    network, coordinates = random_parts(vocab_size)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(logit)
    return network, coordinates


def put_sampler(folder: Path, network: SamplerNetwork, coordinates: Tensor) -> Path:
    """Write the sampler beside the weights of a folder. Returns: the sampler's own folder."""
    (folder / "sampler").mkdir()
    save_trained_sampler(folder / "sampler", network.shape, network.state_dict(), coordinates)
    return folder / "sampler"


@dataclass
class JudgedRow(SlowRow):
    """A row whose places are chosen by a sampler."""

    sampler: TrainedSampler | None = None

    def certainty(self, logits: Tensor, drawn: list[int]) -> dict[int, float]:
        assert self.sampler is not None
        coordinates = self.sampler.coordinates.float()
        features = []
        for place, token in enumerate(self.block):
            if place in self.masks:
                top, statistics = slow_statistics(logits[place].tolist())
                assert top[0] == drawn[place]
                told = [coordinates[one] for one in top] + [torch.tensor(statistics).half().float()]
            else:
                told = [coordinates[token], torch.zeros(2 * COMPONENTS), torch.tensor(CERTAIN)]
            features.append(torch.cat(told))
        masked = torch.tensor([[place in self.masks for place in range(len(self.block))]])
        said = self.sampler.network(torch.stack(features)[None], masked).sigmoid()[0].tolist()
        return {place: said[place] for place in self.masks}


def judged_row(model, prompt: list[int], settings: DecodeConfig, sampler: TrainedSampler) -> JudgedRow:
    """A row that draws nothing: the most probable tokens alone are judged."""
    return JudgedRow(model, settings, prompt, prompt_generators(settings.seed, 1)[0], sampler=sampler)

"""The network's size, what it sees, and that it learns."""

import pytest
import torch

from nld_train.hf.sampler_features_nemotron_labs_diffusion import feature_count
from nld_train.hf.sampler_network_nemotron_labs_diffusion import NetworkShape, SamplerNetwork
from nld_train.trajectories.embedding_pca import COMPONENTS

TINY = NetworkShape(features=15, layers=2, width=16, ffn=24, heads=2)


def parameter_count(shape: NetworkShape) -> int:
    return sum(parameter.numel() for parameter in SamplerNetwork(shape).parameters())


def test_the_papers_size() -> None:
    count = parameter_count(NetworkShape(feature_count(COMPONENTS)))
    assert count == pytest.approx(4.8e6, rel=0.02) and count == 4_793_089


def judged(shape: NetworkShape, changed: int | None, masks: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    network, features = SamplerNetwork(shape), torch.randn(1, 6, shape.features)
    if changed is not None:
        features[0, changed] += 1
    return network(features, torch.arange(6)[None] < masks)[0].detach()


def test_attention_sees_the_block_in_both_directions() -> None:
    before = judged(TINY, None)
    for changed in (0, 5):  # a masked one, a committed one
        assert (judged(TINY, changed) != before).all()


def test_the_mlp_sees_each_position_alone() -> None:
    shape = NetworkShape(features=15, layers=2, width=16, ffn=24, heads=2, attention=False)
    different = judged(shape, 2) != judged(shape, None)
    assert different.tolist() == [place == 2 for place in range(6)]
    assert parameter_count(shape) < parameter_count(TINY)


def test_places_and_the_flag_are_told() -> None:
    torch.manual_seed(0)
    network, same = SamplerNetwork(TINY), torch.ones(1, 6, 15)
    assert len(set(network(same, torch.ones(1, 6, dtype=torch.bool))[0].tolist())) == 6
    assert (judged(TINY, None, masks=6) != judged(TINY, None)).all()


def test_blocks_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network, features, masked = SamplerNetwork(TINY).double(), torch.randn(4, 6, 15).double(), torch.rand(4, 6) < 0.5
    alone = torch.cat([network(features[i : i + 1], masked[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(features, masked), alone)


def test_it_learns_what_only_the_neighbour_shows() -> None:
    torch.manual_seed(0)
    network, masked = SamplerNetwork(TINY), torch.ones(64, 6, dtype=torch.bool)
    features = torch.randn(64, 6, 15)
    labels = (features[..., 0].roll(1, 1) > 0).float()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(features, masked), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_padding_is_seen_by_nobody() -> None:
    torch.manual_seed(0)
    network, features, masked = SamplerNetwork(TINY).double(), torch.randn(2, 6, 15).double(), torch.rand(2, 6) < 0.5
    present = torch.arange(6) < torch.tensor([[4], [6]])
    padded = network(features, masked, present)
    torch.testing.assert_close(padded[0, :4], network(features[:1, :4], masked[:1, :4])[0])
    torch.testing.assert_close(padded[1], network(features[1:], masked[1:])[0])


def test_without_the_top_embedding_a_masked_position_is_judged_blindly() -> None:
    """The first number of a position is that of its top-1's embedding; a committed position's is still seen."""
    shape = NetworkShape(features=15, layers=2, width=16, ffn=24, heads=2, top_embedding=False)
    torch.manual_seed(0)
    network, features, masked = SamplerNetwork(shape), torch.randn(1, 6, 15), torch.arange(6)[None] < 3
    for changed, seen in ((1, False), (4, True)):
        other = features.clone()
        other[0, changed, 0] += 1
        assert bool((network(other, masked) != network(features, masked)).any()) == seen

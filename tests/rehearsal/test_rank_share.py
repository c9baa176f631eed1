"""256 ranks with nobody behind their process groups: who reads which row, and who holds which part of which weight."""

from copy import deepcopy
from itertools import product

import pytest

from nld_train.config import RunConfig
from nld_train.recipe import load_recipe
from nld_train.rehearsal.fake_ranks import RankQuestion, ask_ranks
from nld_train.rehearsal.rank_share import Share, ranks_to_ask, share_faults

CUT = ("tensor=2", "sequence=true", "pipeline=2", "virtual_pipeline=2", "context=2", "world_size=256")
RUN = load_recipe(
    "tiny_stage2_joint", [*(f"parallel.{each}" for each in CUT), "train.global_batch=64", "train.micro_batch=1"]
)


def made_up_shares(run: RunConfig) -> list[Share]:
    """What ranks of data 2 x tensor 2 would say."""
    return [
        {
            "place": [tensor, 0, data, 0],
            "rows": [[data, data + 2], [data + 4, data + 6]],
            "weights": [["a.layers.w", [1, 4, 2], [0, 2 * tensor, 0], [1, 2, 2]], ["norm", [4], [0], [4]]],
        }
        for data in range(2)
        for tensor in range(2)
    ]


@pytest.fixture
def small() -> RunConfig:
    cut = ["parallel.world_size=4", "parallel.tensor=2", "train.global_batch=4", "train.micro_batch=1"]
    return load_recipe("tiny_stage2_joint", cut)


def test_shares_that_fit_together_have_no_fault(small: RunConfig) -> None:
    assert share_faults(small, made_up_shares(small)) == []


def test_every_kind_of_disagreement_is_a_fault(small: RunConfig) -> None:
    def faults(rank: int, part: str, value: object, *, everywhere: bool = False) -> str:
        shares = deepcopy(made_up_shares(small))
        for number, share in enumerate(shares):
            if number == rank or everywhere:
                share[part] = value
        return " ".join(share_faults(small, shares))

    assert "read other rows" in faults(1, "rows", [[0, 1], [4, 6]])
    assert "read twice" in faults(0, "rows", [[0, 2], [4, 6]], everywhere=True)
    assert "nobody reads" in faults(0, "rows", [[0, 2], [4, 6]], everywhere=True)
    assert "another step's" in faults(0, "rows", [[0, 9], [4, 6]], everywhere=True)
    norm = ["norm", [4], [0], [4]]
    assert "do not fill it" in faults(
        0, "weights", [["a.layers.w", [1, 4, 2], [0, 0, 0], [1, 2, 2]], norm], everywhere=True
    )
    assert "do not agree" in faults(3, "weights", [["a.layers.w", [1, 5, 2], [0, 2, 0], [1, 2, 2]], norm])
    assert "layers of [2] in place of 1" in faults(0, "weights", [["a.layers.w", [2], [0], [2]]], everywhere=True)


def test_the_ranks_asked_are_all_that_share_a_model_and_a_few_readers() -> None:
    ranks = ranks_to_ask(RUN, 3)
    assert ranks == [0, 1, 2, 3, 64, 124, 128, 129, 130, 131]
    assert ranks_to_ask(load_recipe("nld_3b_stage1_ar"), 3) == [0, 128, 255]


@pytest.mark.megatron
@pytest.mark.parametrize(
    "readers", [pytest.param(3, marks=pytest.mark.long), pytest.param(32, marks=pytest.mark.long, id="all 32")]
)
def test_of_256_ranks_every_reader_has_its_own_rows_and_all_weights_are_whole(readers: int) -> None:
    """The eight ranks of one model, and readers: all 32 read every row once."""
    ranks = ranks_to_ask(RUN, readers)
    assert len(ranks) == readers + 8 - 1
    shares = ask_ranks([RankQuestion(RUN, rank, "share") for rank in ranks])
    assert share_faults(RUN, shares) == []
    places = {tuple(share["place"]) for share in shares}
    assert len(places) == len(ranks) and {data for _, _, data, _ in places} >= {0, 31}
    assert {(t, c, p) for t, c, data, p in places if data == 0} == {*product(range(2), repeat=3)}
    read = {number for share in shares for number in share["rows"][0]}
    assert len(read) == 2 * readers and (readers < 32 or read == {*range(64)})
    names = {name for share in shares for name, *_ in share["weights"]}
    assert {"embedding.word_embeddings.weight", "output_layer.weight", "decoder.layers.mlp.linear_fc1.weight"} <= names

"""Rows of a sampler's run: which trajectory a number means, who is held out, what is refused."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.config import RunConfig
from nld_train.data.identity import check_data_identity, record_data_identity
from nld_train.data.run_rows import open_run_rows
from nld_train.data.splits import split_documents
from nld_train.data.trajectory_rows import check_trajectory_data, open_trajectory_rows
from nld_train.data.verified import verified_run_data
from nld_train.errors import UserError
from nld_train.recipe import load_recipe
from nld_train.trajectories.stored_parts import part_path, read_part, read_pca
from tests.sampler_folder import BLOCKS, END, VOCABULARY, write_collection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("collected") / "trajectories")


def sampler_run(folder: Path, *overrides: str) -> RunConfig:
    own = (f"data.blend={folder}", f"model.vocab_size={VOCABULARY}", "data.split=75,25,0")
    own += ("train.iterations=20", "train.global_batch=8", "train.micro_batch=2", "parallel.world_size=1")
    own += ("diffusion.block_size=4", "optimizer.warmup_iterations=0", "optimizer.decay_iterations=0")
    given = {text.partition("=")[0]: text for text in (*own, *overrides)}
    return load_recipe("tiny_sampler", list(given.values()))


def of_prompts(folder: Path, prompts: list[int], policies: tuple[str, ...] = ("confidence", "hybrid")) -> dict:
    """final tokens -> the trajectory and its policy, of those prompts."""
    found = {}
    for part in range(3):
        for group, placed in read_part(folder, part).items():
            if group.partition(".")[0] in policies:
                found |= {tuple(each.trajectory.final.tolist()): each for each in placed if each.prompt in prompts}
    return found


def test_an_epoch_takes_every_trajectory_of_its_prompts_once(folder: Path) -> None:
    parts = open_trajectory_rows(sampler_run(folder))
    split, coordinates = split_documents(12, "75,25,0"), read_pca(folder).coordinates
    for part, rows in parts.items():
        wanted = of_prompts(folder, split[part].tolist())
        assert len(wanted) == len(split[part]) * 2 * len(BLOCKS) * 3
        seen, order = set(), []
        for index in range(min(len(rows), len(wanted))):
            row = rows[index]
            assert row.index == index
            (way,) = [
                key
                for key, each in wanted.items()
                if each.trajectory.step_examples(coordinates, (END,)).features.equal(row.examples.features)
            ]
            examples = wanted[way].trajectory.step_examples(coordinates, (END,))
            assert row.examples.labels.equal(examples.labels) and row.examples.judged.equal(examples.judged)
            seen.add(way)
            order.append(way)
        assert len(seen) == len(order), "nothing twice in an epoch"
        if part == "train":
            assert seen == wanted.keys()
            again = [rows[len(wanted) + index].examples.features for index in range(8)]
            assert not all(each.equal(rows[i].examples.features) for i, each in enumerate(again)), "another order"


def test_rows_are_the_same_in_a_worker_and_in_another_process(folder: Path) -> None:
    rows = open_run_rows(sampler_run(folder), folder / "index")["train"]
    before = rows[3].examples.features
    other = pickle.loads(pickle.dumps(rows))
    assert other[3].examples.features.equal(before) and open_trajectory_rows(sampler_run(folder))["train"][3]


def test_policies_are_chosen(folder: Path) -> None:
    rows = open_trajectory_rows(sampler_run(folder, "sampler.policies=hybrid"))["train"]
    assert len(rows.numbers) == 9 * len(BLOCKS) * 3
    finals = of_prompts(folder, list(range(12)), ("hybrid",))
    for number in rows.numbers.tolist():
        part, group, place = rows.places.find(number)
        assert group.startswith("hybrid.") and tuple(rows.stored.read(part, group, place).final.tolist()) in finals


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.blend=nowhere", "no manifest.json in nowhere"),
        ("model.vocab_size=401", "400 ids, model.vocab_size=401"),
        ("data.sequence_length=5", "blocks of 6, data.sequence_length=5"),
        ("data.split=100,0,0", "none for validation"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_trajectory_data(sampler_run(folder, override))
    assert said in str(error.value)


def test_a_collection_that_is_not_whole_or_of_one_policy_is_refused(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "some")
    check_trajectory_data(sampler_run(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"policies": ["hybrid"]}))
    with pytest.raises(UserError, match="was collected by hybrid"):
        check_trajectory_data(sampler_run(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"statistics": ["p_1"]}))
    with pytest.raises(UserError, match="other statistics"):
        check_trajectory_data(sampler_run(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    part_path(folder, 1).unlink()
    with pytest.raises(UserError, match="allowed: all parts of the index"):
        check_trajectory_data(sampler_run(folder))
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match="go on with `nld sampler collect`, or merge it"):
        check_trajectory_data(sampler_run(folder))


def test_a_changed_part_is_found_before_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_collection(tmp_path / "some")
    run = sampler_run(folder)

    def not_beside(error: UserError) -> None:
        raise AssertionError(error)

    with verified_run_data(run, not_beside):
        pass
    content = bytearray(part_path(folder, 2).read_bytes())
    content[-1] ^= 1
    part_path(folder, 2).write_bytes(content)
    with pytest.raises(UserError, match="part-00002.safetensors has SHA-256"), verified_run_data(run, not_beside):
        pass


def test_other_trajectories_under_the_same_name_are_refused_on_resume(tmp_path: Path) -> None:
    run = replace(sampler_run(write_collection(tmp_path / "some")), output=str(tmp_path / "run"))
    Path(run.output).mkdir()
    record_data_identity(run, resumes=False)
    check_data_identity(run)
    index = tmp_path / "some" / "index.json"
    index.write_text(index.read_text().replace('"ends"', ' "ends"', 1))
    with pytest.raises(UserError, match="holds other data than"):
        check_data_identity(run)


def test_blocks_of_a_batch_are_padded(folder: Path) -> None:
    from nld_train.trajectories.sampler_batch import collate_trajectories

    rows = open_trajectory_rows(sampler_run(folder))["train"]
    some = [rows[index] for index in range(8)]
    batch = collate_trajectories(some)
    assert {row.examples.masked.shape[1] for row in some} == set(BLOCKS)
    assert batch.features.shape[:2] == (sum(len(row.examples.masked) for row in some), max(BLOCKS))
    assert not (batch.judged & ~batch.present).any() and not batch.features[~batch.present].any()
    start = 0
    for row in some:
        steps, length = row.examples.masked.shape
        assert torch.equal(batch.features[start : start + steps, :length], row.examples.features)
        assert batch.present[start : start + steps].sum() == steps * length
        start += steps

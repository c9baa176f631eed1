"""run.json of an older version."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.fields import leaf_types
from nld_train.run_folder.frozen import CAME_LATER, check_same_vision, freeze_run, read_frozen_run, vision_record
from nld_train.run_folder.paths import RUN


def without(output: Path, *keys: str) -> None:
    tree = json.loads((output / RUN).read_text())
    for key in keys:
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        del place[name]
    (output / RUN).write_text(json.dumps(tree))


def test_settings_that_came_later_are_what_older_versions_did(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    run = recipe.load_recipe(
        "tiny_stage1_ar", [f"output={tmp_path}", "data.verify=never", "train.eval_decode=0", "train.memory_trial=never"]
    )
    freeze_run(run)
    assert read_frozen_run(tmp_path) == run and caplog.text == ""
    of_drafters = {key for key in CAME_LATER if key.startswith("drafter.")}
    without(tmp_path, *CAME_LATER.keys() - of_drafters)
    assert read_frozen_run(tmp_path) == run
    assert all((key in caplog.text) == (key not in of_drafters) for key in CAME_LATER)


def test_a_drafter_of_an_older_version_was_trained_by_the_papers_loss(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    run = recipe.load_recipe("tiny_drafter", [f"output={tmp_path}"])
    freeze_run(run)
    keys = ("drafter.loss", "drafter.place_decay", "drafter.first_error_weight")
    without(tmp_path, *keys)
    assert read_frozen_run(tmp_path) == run and run.drafter is not None and run.drafter.loss == "lk_hybrid"
    assert all(key in caplog.text for key in keys)


def test_other_settings_that_are_missing_are_refused(tmp_path: Path) -> None:
    freeze_run(recipe.load_recipe("tiny_stage1_ar", [f"output={tmp_path}"]))
    without(tmp_path, "train.seed")
    with pytest.raises(UserError, match="missing settings: train.seed"):
        read_frozen_run(tmp_path)


def test_every_setting_that_came_later_says_what_older_versions_did() -> None:
    """first_settings.txt: those of the first run.json files. A section that came later is None in older ones."""
    first = Path(__file__).with_name("first_settings.txt").read_text().split()
    sections = tuple(f"{key}." for key, value in CAME_LATER.items() if value is None)
    later = [key for key in leaf_types(RunConfig) if key not in first and not key.startswith(sections)]
    assert set(later) <= CAME_LATER.keys(), "add them to CAME_LATER: older run.json files would be refused"
    assert not set(first) & CAME_LATER.keys()


def test_weights_with_another_tower_or_without_one_are_refused_and_say_what_to_do() -> None:
    vision = recipe.load_recipe("tiny_vlm").vision
    assert vision is not None
    recorded = vision_record(vision)
    check_same_vision("there", recorded, vision)
    check_same_vision("there", {}, None)
    check_same_vision("there", recorded, replace(vision, train_tower=False))
    for there, here, said in (
        ({}, vision, "no vision tower.*merge-vision"),
        (recorded, None, "has a vision tower.*--text-only"),
        (recorded, replace(vision, layers=3), "layers=2 there, 3 here"),
        (recorded, replace(vision, image_token_id=20), "image_token_id=12 there, 20 here"),
    ):
        with pytest.raises(UserError, match=said):
            check_same_vision("there", there, here)

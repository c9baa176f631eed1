import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.fields import format_value, leaf_types, leaf_values, parse_value
from nld_train.recipe import dump_settings, load_recipe, recipe_names, run_from_json, run_to_json

TINY = "tiny_stage1_ar"


def message(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.iterations=40", 40),
        ("train.iterations=1_000", 1000),
        ("train.iterations=1e3", 1000),
        ("optimizer.lr=5", 5.0),
        ("model.rope.theta=1e6", 1e6),
        ("model.rope.query_scale_beta=0", 0.0),
        ("parallel.distributed_optimizer=false", False),
        ("checkpoint.asynchronous=True", True),
        ("output=out/a b=c", "out/a b=c"),
        ("init=out/x", "out/x"),
        ("init=none", None),
        ("parallel.recompute=selective", "selective"),
        ("parallel.recompute=none", "none"),
        ("data.blend=0.7:a,0.3:b", ("0.7:a", "0.3:b")),
        ("data.blend=a", ("a",)),
        ("data.split=98,1,1", "98,1,1"),
    ],
)
def test_an_override_is_read_by_the_type_of_its_setting(override, value) -> None:
    found = leaf_values(load_recipe(TINY, [override]))[override.partition("=")[0]]
    assert found == value and type(found) is type(value)


def test_an_override_changes_its_setting_and_no_other() -> None:
    before, after = leaf_values(load_recipe(TINY)), leaf_values(load_recipe(TINY, ["model.rope.theta=7"]))
    assert {key for key in before if before[key] != after[key]} == {"model.rope.theta"}


@pytest.mark.parametrize(
    "override",
    [
        "train.iterations=1.5",
        "train.iterations=ten",
        "train.iterations=inf",
        "train.iterations=true",
        "optimizer.lr=fast",
        "optimizer.lr=nan",
        "parallel.sequence=1",
        "parallel.recompute=some",
        "train.iterations=none",
        "train.iterations=",
        "output=",
        "data.blend=",
        "data.blend=a,,b",
    ],
)
def test_a_value_of_another_type_is_refused_by_name(override) -> None:
    key, _, text = override.partition("=")
    assert f"{key}={text!r}" in message(TINY, override)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.iteration", "train.iterations"),
        ("iterations", "train.iterations"),
        ("lr", "optimizer.lr"),
        ("train.lr", "optimizer.lr"),
        ("model.theta", "model.rope.theta"),
        ("data.seq_length", "data.sequence_length"),
        ("paralel.tensor", "parallel.tensor"),
        ("diffusion.blocksize", "diffusion.block_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(wrong, right) -> None:
    text = message(TINY, f"{wrong}=1")
    assert repr(wrong) in text and f"did you mean {right}?" in text


def test_a_section_is_no_setting() -> None:
    assert "model.rope.theta" in message(TINY, "model.rope=1")


def test_an_override_without_a_value_is_refused() -> None:
    assert "key=value" in message(TINY, "train.iterations")


def test_a_key_given_twice_is_refused() -> None:
    assert "twice" in message(TINY, "train.iterations=1", "train.iterations=2")


def test_overrides_that_are_valid_only_together_work_in_both_orders() -> None:
    pair = ["train.micro_batch=16", "train.global_batch=32"]
    assert load_recipe(TINY, pair) == load_recipe(TINY, pair[::-1])
    sections = ["parallel.tensor=2", "parallel.sequence=true"]
    assert load_recipe(TINY, sections).parallel.sequence
    across = ["optimizer.warmup_iterations=1000", "train.iterations=2000"]
    assert load_recipe(TINY, across).train.iterations == 2000


@pytest.mark.parametrize(
    "override", ["train.micro_batch=16", "parallel.sequence=true", "optimizer.warmup_iterations=1000"]
)
def test_the_final_config_is_checked(override) -> None:
    message(TINY, override)


def test_an_unknown_recipe_is_refused_with_the_known_ones_and_the_nearest() -> None:
    text = message("tiny_stage1")
    assert all(name in text for name in recipe_names()) and "did you mean tiny_stage1_ar?" in text
    assert "no/such.py" in message("no/such.py")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_recipe_may_be_any_file_with_run(tmp_path) -> None:
    text = f"from nld_train.recipe import load_recipe\ndef run(): return load_recipe({TINY!r}, ['name=mine'])\n"
    assert load_recipe(write(tmp_path, text), ["train.seed=5"]) == load_recipe(TINY, ["name=mine", "train.seed=5"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("x = 1\n", "without run()"), ("def run(:\n", "line 1"), ("def run(): return 3\n", "gave a int")],
)
def test_a_file_that_is_no_recipe_is_refused(text, words, tmp_path) -> None:
    assert words in message(write(tmp_path, text))


def test_a_recipe_with_a_value_of_another_type_is_refused(tmp_path) -> None:
    text = (
        "from dataclasses import replace\nfrom nld_train.recipe import load_recipe\n"
        f"def run():\n    run = load_recipe({TINY!r})\n    return replace(run, train=replace(run.train, seed=1.5))\n"
    )
    assert "train.seed=1.5" in message(write(tmp_path, text))


@pytest.mark.parametrize("recipe", recipe_names())
def test_json_gives_back_an_equal_run(recipe) -> None:
    run = load_recipe(recipe)
    again = run_from_json(run_to_json(run))
    assert again == run
    assert {key: type(value) for key, value in leaf_values(again).items()} == {
        key: type(value) for key, value in leaf_values(run).items()
    }


def test_json_keeps_every_digit() -> None:
    run = load_recipe(TINY)
    run = replace(run, optimizer=replace(run.optimizer, lr=0.1 + 0.2))
    assert run_from_json(run_to_json(run)).optimizer.lr == 0.1 + 0.2


def refused(tree: object) -> str:
    with pytest.raises(UserError) as caught:
        run_from_json(json.dumps(tree))
    return str(caught.value)


def test_json_with_unknown_missing_or_wrong_settings_is_refused() -> None:
    def tree() -> dict:
        return json.loads(run_to_json(load_recipe(TINY)))

    unknown, missing, wrong, section = tree(), tree(), tree(), tree()
    unknown["model"]["rope"]["gamma"] = 1
    del missing["train"]["seed"]
    wrong["train"]["seed"] = "7"
    section["model"] = 3
    assert "unknown settings: model.rope.gamma" in refused(unknown)
    assert "missing settings: train.seed" in refused(missing)
    assert "train.seed='7'" in refused(wrong)
    assert "model is 3" in refused(section)
    assert "the run is []" in refused([])


def test_a_frozen_configuration_that_is_no_json_is_refused() -> None:
    with pytest.raises(UserError, match="not JSON"):
        run_from_json('{"name": ')


def test_json_obeys_the_checks_of_the_config() -> None:
    tree = json.loads(run_to_json(load_recipe(TINY)))
    tree["train"]["global_batch"] = 17
    assert "train.global_batch=17" in refused(tree)


def test_every_shown_value_is_read_back_as_itself() -> None:
    for recipe in recipe_names():
        for key, value in leaf_values(load_recipe(recipe)).items():
            assert parse_value(key, leaf_types(RunConfig)[key], format_value(value)) == value


def test_the_dump_has_each_setting_once_and_marks_the_overridden() -> None:
    overrides = ["train.iterations=300", "init=out/x"]
    lines = [line for line in dump_settings(load_recipe(TINY, overrides), overrides).splitlines() if " = " in line]
    assert len(lines) == len(leaf_values(load_recipe(TINY)))
    marked = [line for line in lines if line.endswith("<- override")]
    assert [line.split()[:3] for line in marked] == [["init", "=", "out/x"], ["iterations", "=", "300"]]


def test_planning_a_run_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from nld_train.recipe import load_recipe; from nld_train.plan.dry_run import dry_run_text\n"
        f"dry_run_text(load_recipe({TINY!r}))\n"
        "assert not {'torch', 'megatron', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_a_section_that_is_not_there_cannot_be_overridden() -> None:
    text = message(TINY, "drafter.tau=2")
    assert "drafter.tau given, but there is no drafter section" in text
    assert leaf_values(load_recipe("tiny_drafter", ["drafter.tau=2"]))["drafter.tau"] == 2.0
    assert not any(key.startswith("drafter") for key in leaf_values(load_recipe(TINY)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("drafter.tau=0", "drafter.tau=0"),
        ("drafter.dropout=1", "drafter.dropout=1"),
        ("drafter.sampled_share=2", "drafter.sampled_share=2"),
        ("drafter.blocks_per_row=0", "drafter.blocks_per_row=0"),
        ("init=none", "without init"),
        ("diffusion.alpha=0", "diffusion.alpha=0 with a drafter"),
        ("diffusion.block_size=1", "diffusion.block_size=1 with a drafter"),
        ("parallel.pipeline=2", "parallel.pipeline=2 with a drafter"),
        ("parallel.context=2", "parallel.context=2 with a drafter"),
    ],
)
def test_what_a_drafter_cannot_be_trained_with_is_refused(override, said) -> None:
    assert said in message("tiny_drafter", override, "parallel.world_size=2")

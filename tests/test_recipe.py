import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.config import OptimizerConfig, RunConfig, TrainConfig
from nld_train.errors import UserError
from nld_train.fields import format_value, leaf_types, leaf_values, parse_value
from nld_train.recipe import (
    dump_settings,
    load_recipe,
    portable_recipe_name,
    recipe_names,
    replace_settings,
    run_from_json,
    run_to_json,
)

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
        ("train.tokens=300e9", 300_000_000_000),
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
        "train.tokens=1.5",
        "train.tokens=300x9",
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


def test_a_file_of_several_runs_is_asked_for_one_by_name(tmp_path) -> None:
    text = (
        "from functools import partial\nfrom nld_train.recipe import load_recipe\n"
        f"RUNS = {{name: partial(load_recipe, {TINY!r}, ['name=' + name]) for name in ('one', 'two')}}\n"
    )
    file = write(tmp_path, text)
    assert load_recipe(f"{file}:two").name == "two"
    assert f"write {file}:" in message(file) and "without the name of a run; allowed: one, two" in message(file)
    assert "no run 'thre'" in message(f"{file}:thre")
    assert portable_recipe_name(f"{file}:two") == f"{file}:two"
    assert load_recipe(write(tmp_path, text.replace(", 'two'", ","))).name == "one"


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
    assert "a frozen configuration holds no object" in refused([])


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


JOINT = "nld_8b_stage2_joint"


def lengths(*overrides: str) -> tuple[int | None, int, int]:
    """Tokens, iterations and iterations of the decay of JOINT."""
    run = load_recipe(JOINT, overrides)
    return run.train.tokens, run.train.iterations, run.optimizer.decay_iterations


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (300_000_000_000, 143_051, 61_989)),
        (["train.global_batch=256"], (300_000_000_000, 286_102, 123_978)),
        (["train.global_batch=1024", "data.sequence_length=8192"], (300_000_000_000, 35_763, 15_497)),
        (["train.tokens=150e9"], (150_000_000_000, 71_526, 61_989)),
        (["train.iterations=100_000"], (None, 100_000, 61_989)),
        (["train.iterations=100_000", "train.global_batch=1024"], (None, 100_000, 30_994)),
        (["train.iterations=50", "optimizer.warmup_iterations=1", "optimizer.decay_iterations=0"], (None, 50, 0)),
        (["train.tokens=none", "train.global_batch=1024"], (None, 143_051, 30_994)),
    ],
)
def test_a_length_in_tokens_keeps_its_tokens_and_one_in_iterations_its_iterations(overrides, expected) -> None:
    assert lengths(*overrides) == expected


def test_a_run_given_in_iterations_keeps_them_under_another_batch_until_it_is_given_tokens() -> None:
    assert load_recipe(TINY, ["train.global_batch=16"]).train.iterations == load_recipe(TINY).train.iterations
    run = load_recipe(TINY, ["train.tokens=2_048_000", "train.global_batch=16"])
    assert (run.train.tokens, run.train.iterations) == (2_048_000, 500)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.tokens=1e9", "train.iterations=477"],
            "train.tokens and train.iterations given; allowed: one of the two",
        ),
        (["optimizer.decay_tokens=1e9", "optimizer.decay_iterations=1"], "optimizer.decay_tokens and"),
        (
            ["train.tokens=1000"],
            "train.tokens=1000; allowed: at least half the tokens of one iteration, which has 2097152",
        ),
        (["train.tokens=0"], "train.tokens=0"),
        (["train.iterations=-1"], "neither train.tokens nor train.iterations"),
        (["optimizer.decay_iterations=-2"], "optimizer.decay_iterations=-2"),
        (["train.tokens=100e9"], "optimizer.warmup_iterations + decay_iterations = 62489"),
        (["optimizer.decay_tokens=301e9"], "at most train.iterations=143051"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(overrides, said) -> None:
    assert said in message(JOINT, *overrides)


def test_a_recipe_gives_tokens_or_iterations() -> None:
    run = load_recipe(JOINT)
    with pytest.raises(UserError, match="train.tokens=300000000000 with train.iterations=900"):
        replace(run, train=replace(run.train, iterations=900))
    with pytest.raises(UserError, match="neither train.tokens nor train.iterations"):
        replace(run, train=TrainConfig(global_batch=512))
    with pytest.raises(UserError, match=r"train.tokens=1.5; allowed: whole numbers above 0"):
        replace(run, train=TrainConfig(tokens=1.5, global_batch=512))
    with pytest.raises(UserError, match="neither optimizer.warmup_tokens nor optimizer.warmup_iterations"):
        replace(run, optimizer=OptimizerConfig(lr=1e-3, min_lr=0.0, decay_iterations=0))
    assert replace_settings(run, {"train.global_batch": 256}) == load_recipe(JOINT, ["train.global_batch=256"])


def test_the_frozen_run_holds_both_and_its_json_is_read_as_strictly_as_any() -> None:
    tree = json.loads(run_to_json(load_recipe(JOINT)))
    assert (tree["train"]["tokens"], tree["train"]["iterations"]) == (300_000_000_000, 143_051)
    tree["train"]["iterations"] = 143_052
    assert "train.tokens=300000000000 with train.iterations=143052" in refused(tree)
    tree["train"]["tokens"] = 300e9
    assert "train.tokens=300000000000.0" in refused(tree)


def dumped(recipe: str, *overrides: str) -> dict[str, str]:
    lines = dump_settings(load_recipe(recipe, overrides), overrides).splitlines()
    return {line.split()[0]: line.partition(" = ")[2] for line in lines if " = " in line}


def test_the_dump_says_what_follows_from_what() -> None:
    per = "/ (train.global_batch x data.sequence_length)"
    other = dumped(JOINT, "train.global_batch=256")
    assert other["tokens"] == "300_000_000_000" and other["global_batch"] == "256    <- override"
    assert other["iterations"] == f"286_102    <- train.tokens {per}"
    assert other["decay_iterations"] == f"123_978    <- optimizer.decay_tokens {per}"
    assert other["warmup_iterations"] == "500"
    short = dumped(JOINT, "train.iterations=100_000")
    assert short["iterations"] == "100_000    <- override"
    assert short["tokens"] == "none    <- 209_715_200_000, which train.iterations make"


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
        ("drafter.loss=hybrid", "allowed: lk_hybrid, first_failure, all_places, accepted_length"),
        ("drafter.place_decay=0", "drafter.place_decay=0"),
        ("drafter.place_decay=1.1", "drafter.place_decay=1.1"),
        ("drafter.first_error_weight=0", "drafter.first_error_weight=0"),
        ("init=none", "without init"),
        ("diffusion.alpha=0", "diffusion.alpha=0 with a drafter"),
        ("diffusion.block_size=1", "diffusion.block_size=1 with a drafter"),
        ("parallel.pipeline=2", "parallel.pipeline=2 with a drafter"),
        ("parallel.context=2", "parallel.context=2 with a drafter"),
    ],
)
def test_what_a_drafter_cannot_be_trained_with_is_refused(override, said) -> None:
    assert said in message("tiny_drafter", override, "parallel.world_size=2")


@pytest.mark.parametrize("weight", ["place_decay=0.5", "first_error_weight=2"])
def test_a_drafters_loss_that_weighs_places_itself_takes_no_weights(weight: str) -> None:
    text = message("tiny_drafter", "drafter.loss=accepted_length", f"drafter.{weight}")
    assert f"drafter.{weight} with drafter.loss=accepted_length" in text.replace("2.0", "2")
    load_recipe("tiny_drafter", ["drafter.loss=all_places", f"drafter.{weight}"])

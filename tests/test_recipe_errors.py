"""Recipes are programs of the user's own: whatever they raise is one line with its place."""

import pytest

from nld_train.errors import UserError
from nld_train.recipe import load_recipe

RAISES = {
    "import fails": ("import not_there", "line 1: ModuleNotFoundError: No module named 'not_there'"),
    "leaves": ("def run():\n    import sys\n    sys.exit(3)", "line 3: SystemExit: 3"),
    "two lines": ("def run():\n    raise ValueError('one\\ntwo')", "line 2: ValueError: one two"),
    "asserts": ("def run():\n\n    assert 1 == 2", "line 3: AssertionError"),
    "wants an argument": ("def run(size):\n    return size", "TypeError: run() missing 1 required positional argument"),
    "goes round": ("def run():\n    return run()", "line 2: RecursionError"),
    "a wrong type": (
        "from nld_train.config import TrainConfig\ndef run():\n    return TrainConfig(global_batch='8')",
        "line 3: TypeError",
    ),
    "no syntax": ("def run(", "line 1: '(' was never closed"),
    "no text": ("x = 1\n\x00", "source code string cannot contain null bytes"),
    "returns nothing": ("def run():\n    pass", "gave a NoneType"),
}


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    return str(caught.value)


@pytest.mark.parametrize(("text", "said"), RAISES.values(), ids=RAISES)
def test_whatever_a_recipe_raises_is_one_line_with_its_place(tmp_path, text, said) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    found = refusal(path)
    assert said in found and str(path) in found and "\n" not in found


def test_a_recipe_of_another_encoding_is_one_line(tmp_path) -> None:
    (tmp_path / "own.py").write_bytes(b"# caf\xe9\n")
    assert "own.py" in refusal(tmp_path / "own.py")


def test_a_refusal_of_the_recipes_own_stays_as_it_is(tmp_path) -> None:
    path = tmp_path / "own.py"
    path.write_text("from nld_train.errors import UserError\ndef run():\n    raise UserError('this', 'that', 'so')")
    assert refusal(path) == "this; allowed: that; do: so"

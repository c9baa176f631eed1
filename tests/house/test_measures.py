"""What CONTRIBUTING asks of the house, in numbers."""

import ast
from pathlib import Path

import pytest

from tests.house import measures
from tests.house.measures import Measure, all_measures
from tests.house.test_imports import ORDER


@pytest.mark.parametrize("measure", all_measures(ORDER), ids=lambda measure: measure.name)
def test_the_house_reads(measure: Measure) -> None:
    assert measure.holds, f"{measure.name}: {measure.share:.1%}: {measure.where}"


def test_the_measures_see_what_they_are_meant_to_see() -> None:
    source = """
from nld_train.b import load
def load(x: Tensor): "[B, L]"
def read_it(a, b, c, d, e, f, g) -> Tensor: "no shape"
class Part: pass
"""
    trees = {
        Path("nld_train/a.py"): ast.parse(source),
        Path("nld_train/b.py"): ast.parse("from nld_train import a\nclass Part: 1"),
    }
    assert measures.one_word_names(trees).where == ("nld_train/a.py: load",)
    assert len(measures.shared_names(trees).where) == 2
    assert measures.documented_shapes(trees).where == ("nld_train/a.py: read_it",)
    assert measures.many_parameters(trees).where == ("nld_train/a.py: read_it",)
    assert measures.import_cycles(trees).where == ("nld_train.a", "nld_train.b")
    assert measures.arrows_up(trees, ["a", "b"]).where == ("nld_train/a.py -> nld_train.b",)

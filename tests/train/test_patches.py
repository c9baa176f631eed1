"""Each mend of a pinned library fails here as soon as the library no longer needs it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.megatron


def test_the_datasets_wheel_still_lacks_its_makefile() -> None:
    spec = find_spec("megatron.core.datasets")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    assert not (Path(folder) / "Makefile").exists(), "compile_helpers works now: drop skip_compiling_prebuilt_helpers"
    assert list(Path(folder).glob("helpers_cpp*.so")), "no prebuilt helper: the patch no longer holds"


def test_megatron_bridge_still_has_no_event_before_the_weights_change(one_rank) -> None:
    from megatron.bridge.training.callbacks import VALID_EVENTS

    found = [event for event in VALID_EVENTS if "optimizer" in event or "grad" in event]
    assert not found, f"use {found} in train/health.py and drop watch_gradient_norm"

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

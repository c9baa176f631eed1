"""Each mend of a pinned library fails here as soon as the library no longer needs it."""

import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nld_train.train import patches

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


def test_wandb_is_left_out_where_it_is_not_asked_for() -> None:
    source = (
        "import sys; from nld_train.train import patches; patches.leave_wandb_out()\n"
        "import megatron.core.timers\n"
        "assert sys.modules['wandb'] is None"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


def test_saves_between_steps_still_go_through_a_manager_by_themselves() -> None:
    import queue

    from nvidia_resiliency_ext.checkpointing.async_ckpt import filesystem_async

    assert "Manager" in inspect.getsource(filesystem_async.get_write_results_queue), "drop hand_results_over_in_process"
    before = filesystem_async._results_queue
    patches.hand_results_over_in_process()
    assert isinstance(filesystem_async.get_write_results_queue(), queue.Queue)
    filesystem_async._results_queue = before


def test_megatron_bridge_still_waits_for_wandb_without_limits() -> None:
    from megatron.bridge.training.state import GlobalState

    source = inspect.getsource(GlobalState.wandb_logger.fget)
    assert "wandb.init(**wandb_kwargs)" in source, "hold_wandb_session no longer stands in for what is called"
    assert "timeout" not in source and "settings" not in source, "Megatron-Bridge has limits now: use them"

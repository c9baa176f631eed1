"""Each mend of a pinned library fails here as soon as the library no longer needs it."""

import contextlib
import inspect
import os
import signal
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


def test_wandb_is_left_out_where_it_is_not_asked_for_and_collections_pass_megatron_over() -> None:
    """Its import needs a process of its own, and takes long enough for one."""
    source = (
        "import gc, sys; from nld_train.train import patches; patches.leave_wandb_out()\n"
        "from nld_train.train.megatron_import import load_megatron; load_megatron()\n"
        "assert sys.modules['wandb'] is None and 'megatron.core.timers' in sys.modules\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100 * len(gc.get_objects()) > 0"
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


LOADER = """
import sys
sys.path.insert(0, ".")
import torch
from nld_train.train.patches import end_workers_that_cannot_send
if sys.argv[1] == "patched":
    end_workers_that_cannot_send()
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, number):
        return torch.zeros(1 << 20)
next(iter(torch.utils.data.DataLoader(Rows(), num_workers=1, collate_fn=list)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("patched", ["patched", pytest.param("as it is", marks=pytest.mark.long)])
def test_a_loader_worker_without_shared_memory_ends(patched: str, tmp_path: Path) -> None:
    """160 KB of it hold the semaphores and no batch."""
    (tmp_path / "loader.py").write_text(LOADER)
    inside = f"mount -t tmpfs -o size=160k tmpfs /dev/shm && exec {sys.executable} {tmp_path}/loader.py '{patched}'"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: a loader without shared memory; no mount namespace can be made here")
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", inside], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        said = "hangs"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if patched == "patched":
        assert "No space left on device" in said and "DataLoader worker (pid" in said
    else:
        assert said == "hangs", "the patch is no longer needed"


def test_megatron_bridge_still_waits_for_wandb_without_limits() -> None:
    from megatron.bridge.training.state import GlobalState

    source = inspect.getsource(GlobalState.wandb_logger.fget)
    assert "wandb.init(**wandb_kwargs)" in source, "hold_wandb_session no longer stands in for what is called"
    assert "timeout" not in source and "settings" not in source, "Megatron-Bridge has limits now: use them"

"""One cluster for all tests of this folder, and what its nodes see."""

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.decode.conftest import folder, make_model
from tests.slurm.cluster import PARTITION, Cluster, cluster, why_not

__all__ = ["folder", "make_model"]
ROOT = Path(__file__).parents[2]
NLD = Path(sys.executable).with_name("nld")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running cluster of two nodes. Its folder has a short path, because sockets are named below it."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"NO SLURM CLUSTER TESTED: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="nld-slurm-"))
    with cluster(folder) as running:
        yield running
    assert running.processes() == [], "something of the cluster is left"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all nodes see: data, a site file, outputs; in a folder that scripts must quote."""
    folder = tmp_path_factory.mktemp("a shared folder")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    write_site(folder, NLD_COMMAND=NLD)
    return folder


def write_site(folder: Path, **changes: object) -> Path:
    """folder/site.env."""
    values: dict[str, object] = {
        "NLD_ACCOUNT": "none",
        "NLD_PARTITION": PARTITION,
        "NLD_TIME": "1:00:00",
        "NLD_GPUS_PER_NODE": "0",
        "NLD_FOLDER": ROOT,
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    path = folder / "site.env"
    path.write_text("".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items()))
    return path


@pytest.fixture
def nld(slurm: Cluster) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `nld` as on a login node of the cluster."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(NLD), *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def launch(
    nld: Callable[..., subprocess.CompletedProcess[str]], shared: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`nld launch --executor slurm` on the cluster."""

    def run(recipe: str, *words: object, nodes: int = 2) -> subprocess.CompletedProcess[str]:
        return nld("launch", recipe, *words, "--executor", "slurm", "--nodes", nodes, "--site", shared / "site.env")

    return run

"""One cluster for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster, why_not


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

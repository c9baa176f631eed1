"""The test cluster is a real one: two nodes, one task on each, states, refusals."""

import subprocess
from pathlib import Path

import pytest

from nld_train.launch.sbatch_script import output_option, sbatch_header
from tests.slurm.cluster import NODES, Cluster

pytestmark = pytest.mark.slow


def test_a_job_runs_one_task_on_each_node(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nsrun --ntasks-per-node=1 bash -c 'echo $SLURM_NODEID $SLURMD_NODENAME'\n")
    number = slurm.run("sbatch", "--parsable", "--nodes=2", f"--output={tmp_path}/out", str(script)).strip()
    assert slurm.wait(number, ("COMPLETED", "FAILED"), seconds=60) == "COMPLETED", slurm.logs()
    said = sorted((tmp_path / "out").read_text().splitlines())
    assert said == [f"{number} {name}" for number, name in enumerate(NODES)]


def test_a_job_fails_with_its_own_status(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nexit 75\n")
    number = slurm.run("sbatch", "--parsable", f"--output={tmp_path}/out", str(script)).strip()
    assert slurm.wait(number, ("COMPLETED", "FAILED"), seconds=60) == "FAILED"
    assert slurm.job(number)["ExitCode"] == "75:0"


def test_slurm_reads_the_options_of_a_script_as_they_were_meant(slurm: Cluster, tmp_path: Path) -> None:
    """Spaces, quotes, and what Slurm would replace in a name."""
    folder = tmp_path / 'a folder\'s "50%j" # $HOME'
    folder.mkdir()
    header = sbatch_header(['--comment=night\'s "run" # 1', output_option(folder / "%j.log")])
    script = "\n".join([*header, "echo done", ""])
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, env=slurm.environment, capture_output=True, text=True, check=True
    )
    job = done.stdout.strip()
    assert slurm.wait(job, ("COMPLETED", "FAILED"), seconds=60) == "COMPLETED", slurm.logs()
    assert 'Comment=night\'s "run" # 1 ' in slurm.run("scontrol", "show", "job", job)
    assert (folder / f"{job}.log").read_text() == "done\n"

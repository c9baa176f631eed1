"""The exact scripts: golden files, made again with `NLD_GOLDEN=write pytest tests/launch`."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.launch.placement import place_on_nodes
from nld_train.launch.sbatch_script import BODY, Submission, export_script, train_command, training_script
from nld_train.launch.site import DEFAULTS, Site
from nld_train.launch.submit import plan_export

GOLDEN = Path(__file__).with_name("golden")
H100 = {
    **DEFAULTS,
    "NLD_ACCOUNT": "team",
    "NLD_PARTITION": "gpu",
    "NLD_TIME": "4:00:00",
    "NLD_GPUS_PER_NODE": "8",
    "NLD_FOLDER": "/shared/nld-train",
    "NLD_COMMAND": ".venv/bin/nld",
}
IMAGE = {"NLD_COMMAND": "nld", "NLD_IMAGE": "/images/nemo.sqsh", "NLD_MOUNTS": "/shared:/shared"}
SITES = {
    "slurm": {"NLD_SETUP": "module load cuda/13.0", "NLD_SBATCH": "--qos=high --comment='two words'"},
    "slurm_pyxis": {**IMAGE, "NLD_CONTAINER": "pyxis"},
    "slurm_apptainer": {**IMAGE, "NLD_CONTAINER": "apptainer"},
    "slurm_cpu": {"NLD_GPUS_PER_NODE": "0", "NLD_ACCOUNT": "none"},
    "slurm_after": {},
    "slurm_export": {},
}


def written(name: str) -> str:
    site = Site(Path("site.env"), {**H100, **SITES[name]}, {"NCCL_IB_HCA": "mlx5", "NCCL_DEBUG": "WARN"})
    known = "tiny_stage1_ar" if name == "slurm_cpu" else "nld_8b_stage2_joint"
    run = recipe.load_recipe(known)
    placement = place_on_nodes(run, 2 if name == "slurm_cpu" else None, site.gpus_per_node)
    log = Path("/shared/nld-train") / run.output / "slurm" / "%j.log"
    after = "123" if name == "slurm_after" else None
    job = Submission(run.name, known, ("data.blend=0.7:data/a b,0.3:c",), log, placement, after)
    if name == "slurm_export":
        behind = replace(plan_export(job, "out/the folder", site), after="124")
        return export_script(behind, site)
    return training_script(job, site)


@pytest.mark.parametrize("name", SITES)
def test_the_script_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("NLD_GOLDEN") == "write":
        path.write_text(written(name))
    assert written(name) == path.read_text()


def test_the_local_executor_is_a_command() -> None:
    expected = (GOLDEN / "local.sh").read_text()
    assert train_command("tiny_stage1_ar", ["train.iterations=20", "data.blend=0.7:a b,0.3:c"]) == expected


@pytest.mark.parametrize("name", SITES)
def test_bash_runs_the_nodes_command_with_its_words_whole(name: str, tmp_path: Path) -> None:
    """With an srun that prints its words, one a line: bash's own reading of the script, not ours."""
    for command, prints in (("srun", "printf '%s\\n' \"$@\""), ("scontrol", "echo n1; echo n2")):
        (tmp_path / command).write_text(f"#!/bin/bash\n{prints}\n")
        (tmp_path / command).chmod(0o755)
    text = written(name).replace("/shared/nld-train", str(tmp_path)).replace("module load", ": module load")
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "32", "SLURM_CPUS_ON_NODE": "96"}
    slurm |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=text, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    action = "convert" if name == "slurm_export" else "train"
    command = words[words.index(action) - 1 :]
    assert command[0] == ("nld" if "NLD_IMAGE" in SITES[name] else ".venv/bin/nld")
    if action == "convert":
        assert command[2:] == ["export", f"{tmp_path}/out/nld_8b/stage2_joint", "--to", f"{tmp_path}/out/the folder"]
    else:
        assert command[3:5] == ["data.blend=0.7:data/a b,0.3:c", "--meet"]
        assert command[5].endswith(":26912")
        assert "--nodes=32" in words
    assert "--cpus-per-task=96" in words
    assert ("apptainer" in words) == (name == "slurm_apptainer")
    assert any(word.startswith("--container-image=") for word in words) == (name == "slurm_pyxis")


def test_the_file_for_submitting_by_hand_has_the_same_body(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "slurm" / "train.sbatch").read_text()
    assert text.endswith(BODY)


def test_no_science_in_the_script() -> None:
    """Placement only: what is trained stands in the recipe."""
    header = written("slurm").partition("set -- ")[0]
    assert not any(section in header for section in ("train.", "model.", "optimizer.", "diffusion."))
    assert shlex.split(written("slurm").partition("set -- ")[2].splitlines()[0])[0] == "nld_8b_stage2_joint"

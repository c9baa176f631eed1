"""The exact scripts: golden files, made again with `NLD_GOLDEN=write pytest tests/launch`."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train import recipe
from nld_train.errors import UserError
from nld_train.launch.placement import Placement, place_on_nodes
from nld_train.launch.sbatch_script import ASK_SLURM, BODY, Submission, export_script, train_command, training_script
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


def script_of(folder: Path, changes: dict[str, str], **site: object) -> str:
    values = {**H100, "NLD_FOLDER": str(folder), **changes}
    job = Submission("x", "tiny_stage1_ar", (), folder / "out/my run" / "slurm" / "%j.log", Placement(1, 1))
    return training_script(job, Site(folder / "site.env", values, {}, **site))  # type: ignore[arg-type]


def test_options_are_one_word_each() -> None:
    """As Slurm splits such lines: at white space, but not in quotes (tried with Slurm in tests/slurm)."""
    script = script_of(Path("/shared/my 50%j folder"), {"NLD_SBATCH": """--comment="night's run" --qos=normal"""})
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in lines]
    assert all(len(each) == 1 for each in words)
    options = [word for (word,) in words]
    assert "--comment=night's run" in options and "--qos=normal" in options
    assert "--output=/shared/my 50%%j folder/out/my run/slurm/%j.log" in options


@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", "a\rb", "a\tb", "back\\slash", "\u2028"])
def test_options_that_slurm_would_read_otherwise_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="sbatch option .*allowed: no line ends, tabs and backslashes"):
        script_of(Path("/shared"), {"NLD_SBATCH": shlex.quote(f"--comment={value}")})
    with pytest.raises(UserError, match="sbatch option '--output="):
        script_of(Path("/shared") / value, {})


def test_secrets_are_read_from_the_site_file_when_the_job_runs(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    (folder / "site.env").write_text("NLD_FOLDER=elsewhere\nWANDB_API_KEY='hush \"1\"'\nHF_TOKEN=hush2 # a comment\n")
    script = script_of(folder, {}, secrets=("WANDB_API_KEY", "HF_TOKEN"))
    assert "hush" not in script
    head = script.partition("set -- ")[0] + 'printf "%s\\n" "$NLD_FOLDER"; env | grep hush\n'
    done = subprocess.run(["bash"], input=head, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(folder), "of the script, not of the file as it is now"
    assert set(done.stdout.splitlines()[1:]) == {'WANDB_API_KEY=hush "1"', "HF_TOKEN=hush2"}
    for content in ("WANDB_API_KEY=x\n", None):  # one is gone, the file is gone
        (folder / "site.env").write_text(content) if content else (folder / "site.env").unlink()
        done = subprocess.run(["bash"], input=head, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stdout == "", done.stdout


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


@pytest.mark.parametrize(("failures", "status", "said", "slept"), [(0, 0, 1, 0), (2, 0, 1, 30), (9, 3, 0, 300)])
def test_slurm_is_asked_again_for_five_minutes(failures: int, status: int, said: int, slept: int) -> None:
    """With a command that fails so many times first, and a sleep that only says for how long."""
    program = f"""set -euo pipefail
{ASK_SLURM}
sleep() {{ echo "slept $1" >&2; }}
controller() {{
  asked=$((asked + 1)); if [ "$asked" -le {failures} ]; then return 3; fi
  echo "Restarts=1"
}}
asked=0
ask_slurm controller show || exit $?
"""
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == "Restarts=1\n" * said
    words = done.stderr.split()
    assert sum(int(words[place + 1]) for place, word in enumerate(words) if word == "slept") == slept
    assert done.stderr.count("'controller show' failed, and is tried again in ") == done.stderr.count("slept")


def test_the_first_word_of_slurm_counts() -> None:
    """A comment of somebody's that looks like a field of Slurm's stands behind it, and is not taken for it."""
    job = next(line for line in BODY.splitlines() if line.startswith("job() "))
    said = "JobId=7 Restarts=2 Reason=TimeLimit Comment=Restarts=5 ExcNodeList=(null) Restarts=9"
    program = f"set -euo pipefail\nsaid={shlex.quote(said)}\n{job}\n"
    for field, value in {"JobId": "7", "Restarts": "2", "Reason": "TimeLimit", "PreemptTime": ""}.items():
        asks = f'{program}value=$(job {field}); echo "<$value>"'
        done = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=False)
        assert done.stdout == f"<{value}>\n", done.stderr


def test_the_file_for_submitting_by_hand_has_the_same_body(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "slurm" / "train.sbatch").read_text()
    assert text.endswith(BODY)


def test_no_science_in_the_script() -> None:
    """Placement only: what is trained stands in the recipe."""
    header = written("slurm").partition("set -- ")[0]
    assert not any(section in header for section in ("train.", "model.", "optimizer.", "diffusion."))
    assert shlex.split(written("slurm").partition("set -- ")[2].splitlines()[0])[0] == "nld_8b_stage2_joint"

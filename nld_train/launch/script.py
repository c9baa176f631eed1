"""The script a scheduler is given: its header from the site and the layout, its body the same for every run."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.launch.placement import Placement
from nld_train.launch.site import NONE, Site

# `slurm/train.sbatch` ends with exactly this text.
BODY = """\
set -euo pipefail
cd "$NLD_FOLDER"
eval "$NLD_SETUP"

on_node=()
in_container=()
case "$NLD_CONTAINER" in
  pyxis)
    on_node=("--container-image=$NLD_IMAGE" "--container-workdir=$NLD_FOLDER")
    on_node+=(${NLD_MOUNTS:+"--container-mounts=$NLD_MOUNTS"}) ;;
  apptainer)
    in_container=(apptainer exec --nv --pwd "$NLD_FOLDER" ${NLD_MOUNTS:+--bind "$NLD_MOUNTS"} "$NLD_IMAGE") ;;
esac

# Cancelled: not queued again, whatever status the run leaves with.
trap 'exit 143' TERM

# This script runs on the first node, and there the nodes meet. One task a node: it starts the node's ranks, and needs
# all of the node's cores. A node that ends takes the others with it after a minute.
status=0
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
  --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --kill-on-bad-exit=0 --wait=60 "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" train "$@" --meet "$(hostname):$((20000 + SLURM_JOB_ID % 20000))" || status=$?
# Saved before its end, because the time was up: the same job goes on from there.
if [ "$status" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""
READ_BY_BODY = ("NLD_FOLDER", "NLD_COMMAND", "NLD_SETUP", "NLD_CONTAINER", "NLD_IMAGE", "NLD_MOUNTS")


@dataclass(frozen=True)
class Submission:
    """A run on its way to a scheduler."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    log: Path  # where the job writes; %j is its number
    placement: Placement
    after: str | None = None  # number of the job that must have ended well before this one starts


def sbatch_script(job: Submission, site: Site) -> str:
    """The whole script, as it is submitted."""
    parts = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options(job, site)),
        "",
        f"# {site.path.name}",
        *exports(site),
        "",
        f"set -- {shlex.join([job.recipe, *job.overrides])}",
        "",
        BODY,
    ]
    return "\n".join(parts)


def options(job: Submission, site: Site) -> list[str]:
    """What sbatch is asked for."""
    values = site.values
    account = [] if values["NLD_ACCOUNT"] == NONE else [f"--account={values['NLD_ACCOUNT']}"]
    gpus = [f"--gpus-per-node={site.gpus_per_node}"] if site.gpus_per_node else []
    return [
        f"--job-name={job.name}",
        *account,
        f"--partition={values['NLD_PARTITION']}",
        f"--time={values['NLD_TIME']}",
        f"--nodes={job.placement.nodes}",
        "--ntasks-per-node=1",
        *gpus,
        "--exclusive",
        "--mem=0",
        # So long before the time limit every process of the run is asked to save and leave.
        f"--signal=USR1@{values['NLD_SAVE_SECONDS']}",
        "--requeue",
        *([] if job.after is None else [f"--dependency=afterok:{job.after}", "--kill-on-invalid-dep=yes"]),
        "--open-mode=append",
        f"--output={job.log}",
        *shlex.split(values["NLD_SBATCH"]),
    ]


def exports(site: Site) -> list[str]:
    """What the body and the ranks read from the environment."""
    everything = {name: site.values[name] for name in READ_BY_BODY} | site.environment
    return [f"export {name}={shlex.quote(value)}" for name, value in everything.items()]


def train_command(recipe: str, overrides: Sequence[str]) -> str:
    """What `--executor local` does."""
    return shlex.join(["nld", "train", recipe, *overrides]) + "\n"

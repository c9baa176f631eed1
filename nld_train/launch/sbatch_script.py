"""The script that a scheduler is given: its header comes from the site and the layout, its body is the same for every
run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.errors import require
from nld_train.exit_status import FINISHED, REFUSED, STOPPED
from nld_train.launch.placement import Placement
from nld_train.launch.site import NONE, Site
from nld_train.run_folder.attempts import STARTS
from nld_train.signals import TIME_IS_UP

# How a program is started on the nodes of a job (on_node), inside a container (in_container), and on the first node,
# which runs this script (here).
IN_PLACE = """\
set -euo pipefail
cd "$NLD_FOLDER"
eval "$NLD_SETUP"

on_node=()
in_container=()
here=()
case "$NLD_CONTAINER" in
  pyxis)
    on_node=("--container-image=$NLD_IMAGE" "--container-workdir=$NLD_FOLDER")
    on_node+=(${NLD_MOUNTS:+"--container-mounts=$NLD_MOUNTS"})
    here=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${on_node[@]}") ;;
  apptainer)
    in_container=(apptainer exec --nv --pwd "$NLD_FOLDER" ${NLD_MOUNTS:+--bind "$NLD_MOUNTS"} "$NLD_IMAGE") ;;
esac

"""
# A controller that does not answer just when a node is lost must not end a run of days.
ASK_SLURM = """\
# A command of Slurm. Its controller may be starting anew, or be busy for minutes: it is asked for five minutes.
ask_slurm() {
  local pause
  for pause in 10 20 30 60 90 90; do
    "$@" && return
    echo "'$1 $2' failed, and is tried again in $pause seconds" >&2
    sleep "$pause"
  done
  "$@"
}

"""
# `slurm/train.sbatch` ends with exactly this text.
BODY = (
    IN_PLACE
    + ASK_SLURM
    + """\
NLD_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ' ')
export NLD_NODES

# Slurm wants the job to end: it is cancelled, its time is over, or a node is lost. srun's own status is waited for.
asked=0
trap 'asked=1' TERM

# This script runs on the first node, and there the nodes rendezvous. Each node runs one task, which checks the node,
# starts its ranks and needs all of its cores. Where a node ends, the others are ended a minute later.
status=0
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
  --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --kill-on-bad-exit=0 --wait=60 "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" train "$@" --meet "$(hostname):$((20000 + SLURM_JOB_ID % 10000 * 2))" || status=$?
# Finished, or refused: nothing to go on with.
case "$status" in @FINISHED@ | @REFUSED@) exit "$status" ;; esac
trap '' TERM

# The nodes on which nothing starts any more
unanswered() {
  for node in $NLD_NODES; do
    { timeout 60 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "${on_node[@]}" "${in_container[@]}" \\
      "$NLD_COMMAND" jobs --help > /dev/null 2>&1 || echo "$node"; } &
  done
  wait
}
# What Slurm says of this job
said=$(ask_slurm scontrol --oneliner show job "$SLURM_JOB_ID") || exit "$status"
job() { if [[ " $said" =~ " $1="([^ ]*) ]]; then echo "${BASH_REMATCH[1]}"; fi; }
how=left
silent=""
if [ "$(job Restarts)" -gt "${SLURM_RESTART_COUNT:-0}" ]; then how=requeued
elif [ "$(job Reason)" = TimeLimit ]; then how=timeout
elif [ "$asked" -eq 1 ]; then how=cancelled
elif [[ "$(job PreemptTime)" == *:* ]]; then how=preempted
elif [ "$status" -ne @STOPPED@ ]; then silent=$(unanswered)
fi
left_out=$(job ExcNodeList)
case "$left_out" in "(null)") left_out="" ;; esac

# The same job goes on, unless it is at its restart limit; without the nodes that failed, where it can do without them.
nodes=$(ask_slurm sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format='%N %T') || exit "$status"
more=$("${here[@]}" "${in_container[@]}" "$NLD_COMMAND" requeue "$@" --status "$status" --how "$how" \\
  --silent "$silent" --left-out "${left_out:+$(scontrol show hostnames "$left_out")}" <<< "$nodes") || exit "$status"
if [ "$how" != requeued ]; then ask_slurm scontrol requeue "$SLURM_JOB_ID" || exit "$status"; fi
if [ -n "$more" ]; then ask_slurm scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=${left_out:+$left_out,}$more"; fi
exit "$status"
"""
)
for word, status in {"@FINISHED@": FINISHED, "@REFUSED@": REFUSED, "@STOPPED@": STOPPED}.items():
    BODY = BODY.replace(word, str(status))
# The body of an export job, which runs on one node.
EXPORT_BODY = (
    IN_PLACE
    + """\
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" convert export "$@"
"""
)
READ_BY_BODY = ("NLD_FOLDER", "NLD_COMMAND", "NLD_SETUP", "NLD_CONTAINER", "NLD_IMAGE", "NLD_MOUNTS")
READ_BY_RUN = ("NLD_GPUS_PER_NODE", STARTS)


@dataclass(frozen=True)
class Submission:
    """A job that is to be handed to a scheduler."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    log: Path  # the file that the job writes into; Slurm puts the job's number in the place of %j
    placement: Placement
    after: str | None = None  # number of the job that must have ended well before this one starts; None: no such job
    export: str | None = None  # folder that an export job writes; None: the job trains the run


def training_script(submission: Submission, site: Site) -> str:
    """The whole script that trains a run, as it is submitted."""
    return compose_script(submission, site, [submission.recipe, *submission.overrides], BODY)


def export_script(submission: Submission, site: Site) -> str:
    """The whole script that exports a run once it is finished."""
    assert submission.export is not None, "an export has a folder to go to"
    output = str(submission.log.parent.parent)
    return compose_script(submission, site, [output, "--to", submission.export], EXPORT_BODY)


def compose_script(submission: Submission, site: Site, words: Sequence[str], body: str) -> str:
    """A script of four parts: header, the site's variables, `words`, which `body` reads as arguments, and `body`."""
    read = (*READ_BY_BODY, *READ_BY_RUN)
    parts = [
        *sbatch_header(sbatch_options(submission, site)),
        "",
        f"# {site.path.name}",
        *export_lines({name: site.values[name] for name in read} | site.environment),
        *secret_lines(site),
        "",
        f"set -- {shlex.join(words)}",
        "",
        body,
    ]
    return "\n".join(parts)


def sbatch_options(submission: Submission, site: Site) -> list[str]:
    """The options of sbatch, in the order of the header."""
    values = site.values
    account = [] if values["NLD_ACCOUNT"] == NONE else [f"--account={values['NLD_ACCOUNT']}"]
    gpus = [f"--gpus-per-node={site.gpus_per_node}"] if site.gpus_per_node else []
    return [
        f"--job-name={submission.name}",
        *account,
        f"--partition={values['NLD_PARTITION']}",
        f"--time={values['NLD_TIME']}",
        f"--nodes={submission.placement.nodes}",
        "--ntasks-per-node=1",
        *gpus,
        "--exclusive",
        "--mem=0",
        # So many seconds before the time limit, every process of the run is asked to save and leave.
        f"--signal={slurm_signal(values['NLD_SAVE_SECONDS'])}",
        "--requeue",
        *(
            []
            if submission.after is None
            else [f"--dependency=afterok:{submission.after}", "--kill-on-invalid-dep=yes"]
        ),
        "--open-mode=append",
        output_option(submission.log),
        *shlex.split(values["NLD_SBATCH"]),
    ]


def slurm_signal(seconds: str) -> str:
    """Slurm's words for the signal that a job gets `seconds` before its time limit, e.g. "USR1@300"."""
    return f"{TIME_IS_UP.name.removeprefix('SIG')}@{seconds}"


def sbatch_header(options: Sequence[str]) -> list[str]:
    """The first lines of a script: bash, and an #SBATCH line for each option, as one word whatever is in it.

    Raises: UserError for an option that Slurm would not read as it stands.
    """
    for option in options:
        plain = option.isprintable() and "\\" not in option
        require(plain, f"sbatch option {option!r}", "no line ends, tabs and backslashes", "use another name or path")
    return ["#!/bin/bash", *(f"#SBATCH {shlex.quote(option)}" for option in options)]


def output_option(log: Path) -> str:
    """sbatch's option for the log of a job. Slurm replaces %j and the like in the file's name, and in no folder's."""
    return f"--output={str(log.parent).replace('%', '%%')}/{log.name}"


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Lines that export variables, quoted for bash."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def secret_lines(site: Site) -> list[str]:
    """Lines that export the site's secrets when the job runs: they stand in the site file, and nowhere else."""
    file = shlex.quote(str(site.path.absolute()))
    return [
        f'{name}=$(set -eu; . {file} > /dev/null; printf %s "${name}") || exit {REFUSED}; export {name}'
        for name in site.secrets
    ]


def train_command(recipe: str, overrides: Sequence[str]) -> str:
    """The command that `--executor local` stands for, as a line."""
    return shlex.join(["nld", "train", recipe, *overrides]) + "\n"

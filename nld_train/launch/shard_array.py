"""Work in shards on many nodes: a Slurm array with a job for each shard, and a job behind it that merges them.

`nld launch data` makes a token file so, `nld launch eval` answers prompts, `nld launch sampler` collects trajectories.
"""

import argparse
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.config import require
from nld_train.launch.sbatch_script import (
    ASK_SLURM,
    IN_PLACE,
    READ_BY_BODY,
    export_lines,
    output_option,
    sbatch_header,
    secret_lines,
)
from nld_train.launch.site import NONE, Site
from nld_train.launch.submit import run_sbatch

logger = logging.getLogger(__name__)
RETRIES = 3
# A job of the array. Its arguments are those of `nld @COMMAND@`.
SHARD_BODY = (
    IN_PLACE
    + ASK_SLURM
    + """\
status=0
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" @COMMAND@ "$@" --shard "$SLURM_ARRAY_TASK_ID/$NLD_SHARDS" || status=$?
# Done, or refused: nothing to try again.
case "$status" in 0 | 2) exit "$status" ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$NLD_RETRIES" ]; then
  echo "shard $SLURM_ARRAY_TASK_ID/$NLD_SHARDS ended with status $status and is queued again"
  ask_slurm scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""
)
MERGE_BODY = (
    IN_PLACE
    + """\
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" @COMMAND@ "$@"
"""
)
WHOLE_NODE = ("--exclusive", "--mem=0")
ONE_GPU = ("--gpus-per-node=1",)


@dataclass(frozen=True)
class ShardedWork:
    """What is done in shards: two commands of `nld`, and the words that each is given."""

    name: str  # of the jobs, before _shard and _merge
    shard_command: str  # takes --shard I/N
    merge_command: str
    words: tuple[str, ...]  # of the first
    merge_words: tuple[str, ...]
    output: str  # the jobs' output and scripts go to OUTPUT.slurm
    uses_gpu: bool = False  # a shard works on one GPU, where the site's nodes have any


@dataclass(frozen=True)
class ShardArray:
    """Such work on its way to a cluster."""

    work: ShardedWork
    shards: int
    retries: int  # of every shard
    partition: str | None  # None: the site's

    def logs(self, site: Site) -> Path:
        """The folder of the jobs' output and scripts."""
        return site.job_folder / f"{self.work.output}.slurm"


def array_script(array: ShardArray, site: Site) -> str:
    """The script of every shard."""
    log = output_option(array.logs(site) / "%A_%a.log")
    options = [f"--array=1-{array.shards}", log, "--open-mode=append", "--requeue"]
    variables = {"NLD_SHARDS": str(array.shards), "NLD_RETRIES": str(array.retries)}
    body = SHARD_BODY.replace("@COMMAND@", array.work.shard_command)
    return _script("shard", array, site, options, variables, [f"set -- {shlex.join(array.work.words)}", "", body])


def merge_script(array: ShardArray, site: Site, after: str) -> str:
    """The script of the merge. after: number of the array, which must have ended well."""
    options = [output_option(array.logs(site) / "%j.log"), f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    body = MERGE_BODY.replace("@COMMAND@", array.work.merge_command)
    lines = [f"set -- {shlex.join(array.work.merge_words)}", "", body]
    return _script("merge", array, site, [*options, "--requeue"], {}, lines)


def _script(
    job: str, array: ShardArray, site: Site, own: Sequence[str], variables: dict[str, str], lines: Sequence[str]
) -> str:
    """A script whose header holds the options `own` too, and which ends with `lines`."""
    values = site.values
    account = [] if values["NLD_ACCOUNT"] == NONE else [f"--account={values['NLD_ACCOUNT']}"]
    options = [
        f"--job-name={array.work.name}_{job}",
        *account,
        f"--partition={array.partition or values['NLD_PARTITION']}",
        f"--time={values['NLD_TIME']}",
        *("--nodes=1", "--ntasks-per-node=1"),
        *(ONE_GPU if array.work.uses_gpu and site.gpus_per_node else WHOLE_NODE),
        *own,
        *shlex.split(values["NLD_SBATCH"]),
    ]
    exported = {name: values[name] for name in READ_BY_BODY} | site.environment | variables
    return "\n".join([*sbatch_header(options), "", *export_lines(exported), *secret_lines(site), "", *lines])


def submit_array(array: ShardArray, site: Site) -> tuple[str, str]:
    """Queue the array and its merge; returns their numbers. Raises UserError with Slurm's own reason; then nothing is
    queued."""
    shards = array_script(array, site)
    run_sbatch(["--test-only"], shards, site)
    array.logs(site).mkdir(parents=True, exist_ok=True)
    first = run_sbatch(["--parsable"], shards, site).partition(";")[0].strip()
    merge = merge_script(array, site, first)
    second = run_sbatch(["--parsable"], merge, site).partition(";")[0].strip()
    for number, text in ((first, shards), (second, merge)):
        (array.logs(site) / f"{number}.sbatch").write_text(text, encoding="utf-8")
    logger.info("array %s: %d shards; job %s merges them; output in %s", first, array.shards, second, array.logs(site))
    return first, second


def add_array_options(parser: argparse.ArgumentParser) -> None:
    """How the work is cut and placed; the options of the work itself are left to its own parser."""
    parser.add_argument("--shards", type=int, required=True, metavar="N", help="jobs of the array")
    parser.add_argument("--executor", choices=("slurm",), default="slurm", help="the only one (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=RETRIES, metavar="R", help="of a shard (default: %(default)s)")
    parser.add_argument("--partition", metavar="P", help="Slurm's partition (default: the site's)")
    parser.add_argument(
        "--site", default="slurm/site.env", metavar="FILE", help="where jobs are placed (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the scripts; submit nothing")


def array_of(args: argparse.Namespace, work: ShardedWork, shard: str | None) -> ShardArray:
    """The array of these options. shard: what --shard of the work says, which every job has of its own. Raises
    UserError."""
    require(args.shards >= 1, f"--shards {args.shards}", "1 or more", "use as many as nodes can work at a time")
    require(args.retries >= 0, f"--retries {args.retries}", "0 or more", "use 0 to try every shard once")
    require(shard is None, f"--shard {shard}", "--shards N", "leave --shard out: every job has its own")
    return ShardArray(work, args.shards, args.retries, args.partition)

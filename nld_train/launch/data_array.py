"""`nld launch data`: text becomes a token file on many nodes, as a Slurm array of shards and a job that merges them."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nld_train.config import require
from nld_train.launch.sbatch_script import (
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
HELP = """\
Prepare text on a Slurm cluster: an array of N jobs, a node each, makes the shards, and a job behind it merges them. All
that `nld data prepare` takes is handed on to it; paths start in the site's folder.

A shard that fails is queued again, and goes on where it stopped; one whose node is lost is queued again by Slurm. One
that refuses its input (exit status 2) is not. After an array that ended badly, the same command does what is missing.
"""
EXAMPLE = """\
example:
  nld launch data corpus --tokenizer tokenizer --output data/mix --shards 64 --partition cpu
"""
# A job of the array. Its arguments are those of `nld data prepare`.
SHARD_BODY = (
    IN_PLACE
    + """\
status=0
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" data prepare "$@" --shard "$SLURM_ARRAY_TASK_ID/$NLD_SHARDS" || status=$?
# Done, or refused: nothing to try again.
case "$status" in 0 | 2) exit "$status" ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -lt "$NLD_RETRIES" ]; then
  echo "shard $SLURM_ARRAY_TASK_ID/$NLD_SHARDS ended with status $status and is queued again"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""
)
MERGE_BODY = (
    IN_PLACE
    + """\
srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${on_node[@]}" \\
  "${in_container[@]}" "$NLD_COMMAND" data merge "$@"
"""
)


@dataclass(frozen=True)
class DataArray:
    """A preparation on its way to a cluster."""

    words: tuple[str, ...]  # of `nld data prepare`
    output: str  # the prefix among them
    merge_words: tuple[str, ...]  # of `nld data merge`
    shards: int
    retries: int  # of every shard
    partition: str | None  # None: the site's

    def logs(self, site: Site) -> Path:
        """The folder of the jobs' output and scripts."""
        return site.job_folder / f"{self.output}.slurm"


def array_script(array: DataArray, site: Site) -> str:
    """The script of every shard."""
    log = output_option(array.logs(site) / "%A_%a.log")
    options = [f"--array=1-{array.shards}", log, "--open-mode=append", "--requeue"]
    variables = {"NLD_SHARDS": str(array.shards), "NLD_RETRIES": str(array.retries)}
    return _script("data_shard", array, site, options, variables, array.words, SHARD_BODY)


def merge_script(array: DataArray, site: Site, after: str) -> str:
    """The script of the merge. after: number of the array, which must have ended well."""
    options = [output_option(array.logs(site) / "%j.log"), f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    return _script("data_merge", array, site, [*options, "--requeue"], {}, array.merge_words, MERGE_BODY)


def _script(
    name: str,
    array: DataArray,
    site: Site,
    own: Sequence[str],
    variables: dict[str, str],
    words: Sequence[str],
    body: str,
) -> str:
    values = site.values
    account = [] if values["NLD_ACCOUNT"] == NONE else [f"--account={values['NLD_ACCOUNT']}"]
    options = [
        f"--job-name={name}",
        *account,
        f"--partition={array.partition or values['NLD_PARTITION']}",
        f"--time={values['NLD_TIME']}",
        *("--nodes=1", "--ntasks-per-node=1", "--exclusive", "--mem=0"),
        *own,
        *shlex.split(values["NLD_SBATCH"]),
    ]
    exported = {name: values[name] for name in READ_BY_BODY} | site.environment | variables
    lines = [
        *sbatch_header(options),
        "",
        *export_lines(exported),
        *secret_lines(site),
        "",
        f"set -- {shlex.join(words)}",
        "",
        body,
    ]
    return "\n".join(lines)


def submit_array(array: DataArray, site: Site) -> tuple[str, str]:
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


def data_array_parser() -> argparse.ArgumentParser:
    """The options of the array alone; those of `nld data prepare` are left to its own parser."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "nld launch data", description=HELP, epilog=EXAMPLE, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--shards", type=int, required=True, metavar="N", help="jobs of the array")
    parser.add_argument("--executor", choices=("slurm",), default="slurm", help="the only one (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=RETRIES, metavar="R", help="of a shard (default: %(default)s)")
    parser.add_argument("--partition", metavar="P", help="Slurm's partition (default: the site's)")
    parser.add_argument(
        "--site", default="slurm/site.env", metavar="FILE", help="where jobs are placed (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the scripts; submit nothing")
    return parser


def array_of(args: argparse.Namespace, words: Sequence[str], prepared: argparse.Namespace) -> DataArray:
    """The array of these options. Raises UserError.

    prepared: `words` as the parser of `nld data prepare` reads them.
    """
    require(args.shards >= 1, f"--shards {args.shards}", "1 or more", "use as many as nodes can work at a time")
    require(args.retries >= 0, f"--retries {args.retries}", "0 or more", "use 0 to try every shard once")
    require(
        prepared.shard is None, f"--shard {prepared.shard}", "--shards N", "leave --shard out: every job has its own"
    )
    workers = ("--workers", str(prepared.workers)) if "--workers" in words else ()
    merge = (prepared.output, *workers, *(("--overwrite",) if prepared.overwrite else ()))
    return DataArray(tuple(words), prepared.output, merge, args.shards, args.retries, args.partition)

"""Handing a run to Slurm, which is asked first whether it would take the job."""

import contextlib
import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.data.staging import write_text
from nld_train.launch.placement import place
from nld_train.launch.script import Submission
from nld_train.launch.site import Site

logger = logging.getLogger(__name__)

SECONDS = 60  # that Slurm's commands may take
FOLDER = "slurm"  # in the output folder: scripts and the jobs' output


def newest_job(output: Path) -> str:
    """Number of the job last submitted for a run, by its output folder. Raises: UserError where there is none."""
    numbers = [int(path.stem) for path in (output / FOLDER).glob("*.sbatch")]
    require(bool(numbers), f"no job of {output}", "the output folder of a run of `nld launch`", "launch that run first")
    return str(max(numbers))


def prepare(
    run: RunConfig, recipe: str, overrides: Sequence[str], nodes: int | None, after: str | None, site: Site
) -> Submission:
    """The run on its nodes. Raises: UserError where it does not fit them."""
    placement = place(run, nodes, site.gpus_per_node)
    log = site.folder / run.output / FOLDER / "%j.log"
    named = str(Path(recipe).absolute()) if "/" in recipe else recipe
    return Submission(run.name, named, tuple(overrides), log, placement, after)


def checked(run: RunConfig, site: Site, doors: Sequence[Callable[[RunConfig], None]]) -> None:
    """What the run would be refused for on the nodes, asked here, from the folder it will run in. Raises: UserError."""
    with contextlib.chdir(site.folder):
        for door in doors:
            door(run)


def submit(script: str, job: Submission, site: Site) -> str:
    """Submit a script; returns the job's number. Raises: UserError with Slurm's own reason; nothing is queued then."""
    do = "run this on a login node of the cluster"
    require(shutil.which("sbatch") is not None, "no sbatch on this machine", "a machine with Slurm's commands", do)
    _sbatch(["--test-only"], script, site)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    number = _sbatch(["--parsable"], script, site).partition(";")[0].strip()
    kept = job.log.with_name(f"{number}.sbatch")
    write_text(kept, script)
    logger.info("job %s: %s on %d nodes; %s", number, job.name, job.placement.nodes, kept)
    return number


def _sbatch(words: list[str], script: str, site: Site) -> str:
    """stdout of sbatch, which reads the script from its input."""
    done = subprocess.run(
        ["sbatch", *words], input=script, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    reason = " ".join(done.stderr.split()).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    require(done.returncode == 0, f"Slurm refuses the job: {reason}", "what the cluster offers", f"correct {site.path}")
    return done.stdout

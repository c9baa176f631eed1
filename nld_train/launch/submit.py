"""Handing a run to Slurm, which is asked first whether it would take the job."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.convert.source import check_vocabulary_size
from nld_train.data.tokenizer import load_tokenizer
from nld_train.files import refuse_existing, write_text
from nld_train.launch.placement import Placement, place_on_nodes
from nld_train.launch.sbatch_script import Submission, export_script
from nld_train.launch.site import Site
from nld_train.launch.slurm_command import slurm_command
from nld_train.recipe import portable_recipe_name
from nld_train.run_folder.attempts import read_attempts, read_submissions, record_submission
from nld_train.run_folder.paths import SLURM

logger = logging.getLogger(__name__)


def newest_training_job(output: Path) -> str:
    """Number of the newest job that trains a run, by its output folder. Raises: UserError where there is none."""
    numbers = [job.job for job in read_submissions(output) if job.export is None]
    numbers += [attempt.job for attempt in read_attempts(output) if attempt.job]
    require(bool(numbers), f"no job of {output}", "the output folder of a run of `nld launch`", "launch that run first")
    return max(numbers, key=int)


def plan_submission(
    run: RunConfig, recipe: str, overrides: Sequence[str], nodes: int | None, after: str | None, site: Site
) -> Submission:
    """The run on its nodes. Raises: UserError where it does not fit them."""
    placement = place_on_nodes(run, nodes, site.gpus_per_node)
    log = site.folder / run.output / SLURM / "%j.log"
    return Submission(run.name, portable_recipe_name(recipe), tuple(overrides), log, placement, after)


def plan_export(job: Submission, target: str, site: Site) -> Submission:
    """The job that exports the run of `job` to `target`, from the site's folder. Raises: UserError if that exists."""
    folder = site.folder / target
    refuse_existing([folder])
    return replace(job, name=f"{job.name}_export", placement=Placement(1, 1), after="JOB", export=str(folder))


def check_export(run: RunConfig) -> None:
    """Refuse a run whose export would be refused at its end. Raises: UserError."""
    check_vocabulary_size(load_tokenizer(run.data.tokenizer), run.model.vocab_size)


def submit_export(export: Submission, number: str, site: Site) -> str:
    """Queue an export behind the job of that number; returns its own. Raises: UserError."""
    behind = replace(export, after=number)
    return submit_script(export_script(behind, site), behind, site)


def run_checks_in(run: RunConfig, site: Site, doors: Sequence[Callable[[RunConfig], None]]) -> None:
    """What the run would be refused for on the nodes, asked here, from the folder it will run in. Raises: UserError."""
    with contextlib.chdir(site.folder):
        for door in doors:
            door(run)


def submit_script(script: str, job: Submission, site: Site, hand_in: Callable[[], str] | None = None) -> str:
    """Submit a script, by `hand_in` where that is not for sbatch alone; returns the job's number.

    Raises: UserError with Slurm's own reason; nothing is queued then.
    """
    do = "run this on a login node of the cluster"
    require(shutil.which("sbatch") is not None, "no sbatch on this machine", "a machine with Slurm's commands", do)
    _sbatch(["--test-only"], script, site)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    number = _sbatch(["--parsable"], script, site).partition(";")[0].strip() if hand_in is None else hand_in()
    kept = job.log.with_name(f"{number}.sbatch")
    write_text(kept, script)
    record_submission(job.log.parent.parent, number, job.export)
    logger.info("job %s: %s on %d nodes; %s", number, job.name, job.placement.nodes, kept)
    return number


def _sbatch(words: list[str], script: str, site: Site) -> str:
    """stdout of sbatch, which reads the script from its input."""
    done = slurm_command("sbatch", *words, given=script)
    reason = " ".join(done.stderr.split()).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    require(done.returncode == 0, f"Slurm refuses the job: {reason}", "what the cluster offers", f"correct {site.path}")
    return done.stdout

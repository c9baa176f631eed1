"""Handing a run to Slurm, which is asked first whether it would take the job."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nld_train.config import RunConfig, require
from nld_train.convert.source import check_vocabulary_size
from nld_train.data.tokenizer import load_tokenizer
from nld_train.doctor.start_checks import check_run_data, check_start
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
    """The number of the newest job that trains the run of an output folder. Raises: UserError where there is none."""
    numbers = [job.job for job in read_submissions(output) if job.export is None]
    numbers += [attempt.job for attempt in read_attempts(output) if attempt.job]
    require(bool(numbers), f"no job of {output}", "the output folder of a run of `nld launch`", "launch that run first")
    return max(numbers, key=int)


def plan_submission(
    run: RunConfig, recipe: str, overrides: Sequence[str], nodes: int | None, after: str | None, site: Site
) -> Submission:
    """How a run is handed to a scheduler.

    nodes: how many; None: as few as hold the run. after: number of the job that must have ended well before.
    Raises: UserError where the run does not fit the nodes.
    """
    placement = place_on_nodes(run, nodes, site.gpus_per_node)
    log = site.job_folder / run.output / SLURM / "%j.log"
    return Submission(run.name, portable_recipe_name(recipe), tuple(overrides), log, placement, after)


def plan_export(training: Submission, target: str, site: Site) -> Submission:
    """The job that exports the run of `training` to `target`, a path from the site's folder.

    Raises: UserError where that exists.
    """
    folder = site.job_folder / target
    refuse_existing([folder])
    return replace(training, name=f"{training.name}_export", placement=Placement(1, 1), after="JOB", export=str(folder))


def check_export(run: RunConfig) -> None:
    """Refuse a run now whose export would be refused when it is finished. Raises: UserError."""
    do = "leave --then-export away, and give `nld convert sampler` afterwards"
    require(run.sampler is None, f"--then-export of {run.name}, a sampler's run", "the run of a model", do)
    check_vocabulary_size(load_tokenizer(run.data.tokenizer), run.model.vocab_size)


def submit_export(export: Submission, number: str, site: Site) -> str:
    """Queue an export behind the job of that number; returns the number of the new job. Raises: UserError."""
    behind = replace(export, after=number)
    return submit_script(export_script(behind, site), behind, site)


def check_before_submission(run: RunConfig, submission: Submission, export: Submission | None, site: Site) -> None:
    """Make the start checks of the nodes here already, from the folder that the run will be in. Raises: UserError."""
    with contextlib.chdir(site.job_folder):
        if submission.after is None:  # else the weights to start from are there only once that job has ended
            check_start(run)
        check_run_data(run)
        if export is not None:
            check_export(run)


def submit_script(script: str, submission: Submission, site: Site) -> str:
    """Submit a script by sbatch, and record it; returns the job's number.

    Raises: UserError with Slurm's own reason; nothing is queued then.
    """
    check_slurm_accepts(script, submission, site)
    number = run_sbatch(["--parsable"], script, site).partition(";")[0].strip()
    record_submitted_script(script, submission, number)
    return number


def check_slurm_accepts(script: str, submission: Submission, site: Site) -> None:
    """Ask Slurm whether it would take a script, and then make the folder of the job's log.

    Raises: UserError with Slurm's own reason.
    """
    run_sbatch(["--test-only"], script, site)
    submission.log.parent.mkdir(parents=True, exist_ok=True)


def record_submitted_script(script: str, submission: Submission, number: str) -> None:
    """Keep the script of a submitted job beside its log, and add the job to the run's record."""
    kept = submission.log.with_name(f"{number}.sbatch")
    write_text(kept, script)
    record_submission(submission.log.parent.parent, number, submission.export)
    logger.info("job %s: %s on %d nodes; %s", number, submission.name, submission.placement.nodes, kept)


def run_sbatch(words: list[str], script: str, site: Site) -> str:
    """What sbatch prints, which reads the script from its input. Raises: UserError where it is missing, or refuses."""
    do = "run this on a login node of the cluster"
    require(shutil.which("sbatch") is not None, "no sbatch on this machine", "a machine with Slurm's commands", do)
    done = slurm_command("sbatch", *words, given=script)
    reason = " ".join(done.stderr.split()).removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    require(done.returncode == 0, f"Slurm refuses the job: {reason}", "what the cluster offers", f"correct {site.path}")
    return done.stdout

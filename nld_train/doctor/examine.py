"""All checks of the doctor, in the order in which they are printed."""

from dataclasses import replace

from nld_train.config import RunConfig
from nld_train.doctor import recipe_checks
from nld_train.doctor.accelerator import accelerator_findings, found_gpus
from nld_train.doctor.finding import DoctorFinding, any_fails
from nld_train.doctor.machine import (
    can_submit,
    cores_finding,
    has_wandb_login,
    shared_memory_finding,
    slurm_finding,
    wandb_finding,
)
from nld_train.doctor.packages import software_findings
from nld_train.doctor.start_checks import check_ranks, check_run_data, check_start


def machine_findings(run: RunConfig | None = None) -> list[DoctorFinding]:
    """The findings that concern every run on this machine. run: whose setting of W&B is looked at."""
    return [
        *software_findings(),
        *accelerator_findings(found_gpus()),
        cores_finding(),
        shared_memory_finding(),
        slurm_finding(),
        wandb_finding(has_wandb_login(), run),
    ]


def run_findings(run: RunConfig, verify: bool) -> list[DoctorFinding]:
    """The findings that concern one run. verify: whether to read data and checkpoints to their last byte."""
    files = recipe_checks.check_data_files(run, verify)
    ranks = recipe_checks.run_start_check("ranks", check_ranks, run)
    gpus = found_gpus()
    memory = [recipe_checks.check_memory(run, gpus)]
    if can_submit() and any_fails([ranks]):
        # Too many ranks for this machine are no failure where Slurm has others.
        ranks = replace(ranks, verdict="note", do="start it with `nld launch --executor slurm`")
        memory = memory if gpus.names else []  # the memory of the nodes cannot be seen from here
    return [
        ranks,
        recipe_checks.run_start_check("start", check_start, run),
        # Where a file is already found wrong, check_data would say the same again.
        *([] if any_fails(files) else [recipe_checks.run_start_check("data", check_run_data, run)]),
        *files,
        *recipe_checks.check_first_start(run),
        recipe_checks.check_tokenizer(run),
        *memory,
        recipe_checks.check_disk(run),
        *recipe_checks.check_checkpoints(run, verify),
    ]

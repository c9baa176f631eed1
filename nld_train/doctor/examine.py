"""All checks, in the order they are printed."""

from dataclasses import replace

from nld_train.config import RunConfig
from nld_train.doctor import recipe_checks
from nld_train.doctor.accelerator import accelerator, found_gpus
from nld_train.doctor.finding import Finding, any_fails
from nld_train.doctor.machine import can_submit, cores, shared_memory, slurm, wandb, wandb_login
from nld_train.doctor.packages import software
from nld_train.doctor.start_checks import check_data, check_ranks, check_start


def machine(run: RunConfig | None = None) -> list[Finding]:
    """What holds for every run here."""
    return [*software(), *accelerator(found_gpus()), cores(), shared_memory(), slurm(), wandb(wandb_login(), run)]


def needs(run: RunConfig, verify: bool) -> list[Finding]:
    """What this run needs of this machine; `verify` reads data and checkpoints whole."""
    files = recipe_checks.data(run, verify)
    ranks = recipe_checks.asked("ranks", check_ranks, run)
    gpus = found_gpus()
    memory = [recipe_checks.room(run, gpus)]
    if can_submit() and any_fails([ranks]):
        # Too many ranks for this machine are no failure where Slurm has others.
        ranks = replace(ranks, verdict="note", do="start it with `nld launch --executor slurm`")
        memory = memory if gpus.names else []  # the nodes' memory is not to be seen from here
    return [
        ranks,
        recipe_checks.asked("start", check_start, run),
        # Where a file is already found wrong, check_data would say the same again.
        *([] if any_fails(files) else [recipe_checks.asked("data", check_data, run)]),
        *files,
        recipe_checks.tokenizer(run),
        *memory,
        recipe_checks.disk(run),
        *recipe_checks.saved(run, verify),
    ]

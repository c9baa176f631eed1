"""All checks, in the order they are printed."""

from dataclasses import replace

from nld_train.config import RunConfig
from nld_train.doctor import recipe_checks
from nld_train.doctor.accelerator import accelerator, found_gpus
from nld_train.doctor.finding import Finding, any_fails
from nld_train.doctor.machine import can_submit, cores, shared_memory, slurm, wandb
from nld_train.doctor.packages import software

DATA_DOOR, RANKS_DOOR = "data", "ranks"


def machine(logged_in: bool, run: RunConfig | None = None) -> list[Finding]:
    """What holds for every run here; `logged_in`: whether W&B has a login."""
    return [*software(), *accelerator(found_gpus()), cores(), shared_memory(), slurm(), wandb(logged_in, run)]


def needs(run: RunConfig, doors: recipe_checks.Doors, verify: bool) -> list[Finding]:
    """What this run needs of this machine; `verify` reads data and checkpoints whole."""
    files = recipe_checks.data(run, verify)
    if any_fails(files):  # the door would say the same again
        doors = {name: check for name, check in doors.items() if name != DATA_DOOR}
    asked = recipe_checks.at_the_door(run, doors)
    gpus = found_gpus()
    memory = [recipe_checks.room(run, gpus)]
    if can_submit() and any(finding.check == RANKS_DOOR and finding.verdict == "FAIL" for finding in asked):
        asked = [on_a_cluster(finding) for finding in asked]
        memory = memory if gpus.names else []  # the nodes' memory is not to be seen from here
    return [
        *asked,
        *files,
        recipe_checks.tokenizer(run),
        *memory,
        recipe_checks.disk(run),
        *recipe_checks.saved(run, verify),
    ]


def on_a_cluster(finding: Finding) -> Finding:
    """Too many ranks for this machine are no failure where Slurm has others."""
    if finding.check != RANKS_DOOR:
        return finding
    return replace(finding, verdict="note", do="start it with `nld launch --executor slurm`")

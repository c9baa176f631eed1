"""Cores, memory, Slurm's commands and W&B's login."""

import os
import shutil
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.doctor.finding import DoctorFinding, counted_noun, gb_text

SLURM = ("sbatch", "srun", "squeue", "scancel", "sinfo")
SHARED = Path("/dev/shm")
ENOUGH_SHARED = 1e9  # bytes: loader workers hand their batches over through it, and containers often have 64 MB


def total_memory() -> int:
    """The main memory of this machine in bytes, or the limit of this process's control group where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def cores_finding() -> DoctorFinding:
    return DoctorFinding(
        "cores, memory", f"{counted_noun(len(os.sched_getaffinity(0)), 'core')}, {gb_text(total_memory())}"
    )


def shared_memory_finding(folder: Path = SHARED) -> DoctorFinding:
    """Whether the batches that loader workers hand over fit into shared memory."""
    if not folder.is_dir():
        return DoctorFinding("shared memory", f"no {folder}", "FAIL", f"mount {folder}, or set data.workers=0")
    free = shutil.disk_usage(folder).free
    if free < ENOUGH_SHARED:
        do = "give the container more (Docker: --shm-size 8g), or set data.workers=0"
        return DoctorFinding("shared memory", f"{gb_text(free)} free in {folder}", "note", do)
    return DoctorFinding("shared memory", f"{gb_text(free)} free in {folder}")


def can_submit() -> bool:
    return all(shutil.which(command) is not None for command in SLURM)


def slurm_finding() -> DoctorFinding:
    """Whether jobs can be submitted from here."""
    if can_submit():
        return DoctorFinding("Slurm", "its commands are here")
    missing = [command for command in SLURM if shutil.which(command) is None]
    if len(missing) == len(SLURM):
        return DoctorFinding("Slurm", "no commands: runs start on this machine alone")
    return DoctorFinding("Slurm", f"without {', '.join(missing)}", "note", "install Slurm's client commands whole")


def wandb_finding(logged_in: bool, run: RunConfig | None) -> DoctorFinding:
    """Where the curves go. Without a login, a run is recorded offline, or stops where it says `required`."""
    mode = "auto" if run is None else run.log.wandb
    login = "a login is there" if logged_in else "no login"
    if mode == "disabled":
        return DoctorFinding("W&B", "log.wandb=disabled")
    if mode == "required" and not logged_in:
        return DoctorFinding(
            "W&B", "no login, and log.wandb=required", "FAIL", "run `wandb login`, or set log.wandb=auto"
        )
    if mode in ("auto", "online") and not logged_in:
        do = "run `wandb login`, or upload later with `wandb sync`"
        return DoctorFinding("W&B", "no login: runs are recorded offline", "note", do)
    return DoctorFinding("W&B", f"{login}; log.wandb={mode}")


def has_wandb_login() -> bool:
    """Whether wandb would find a login."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text())


def nearest_existing_folder(path: Path) -> Path:
    """`path` where it exists, else the nearest folder above it that does."""
    return next(above for above in (path, *path.absolute().parents) if above.exists())

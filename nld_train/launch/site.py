"""The site file: where runs are placed. `slurm/site.env.example` explains every line; bash can read it as well."""

import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nld_train.config import require
from nld_train.errors import UserError
from nld_train.fields import nearest_name
from nld_train.run_folder.attempts import STARTS, STARTS_DEFAULT

NONE = "none"
CONTAINERS = (NONE, "pyxis", "apptainer")
REQUIRED = ("NLD_ACCOUNT", "NLD_PARTITION", "NLD_TIME", "NLD_GPUS_PER_NODE", "NLD_FOLDER", "NLD_COMMAND")
DEFAULTS = {
    "NLD_SBATCH": "",
    "NLD_SETUP": "",
    "NLD_SAVE_SECONDS": "300",
    STARTS: str(STARTS_DEFAULT),
    "NLD_CONTAINER": NONE,
    "NLD_IMAGE": "",
    "NLD_MOUNTS": "",
}
KNOWN = (*REQUIRED, *DEFAULTS)
# A name that begins with one of these is passed on to the ranks unchanged.
PASSED_ON = ("NCCL_", "UCX_", "GLOO_", "TORCH_", "CUDA_", "NVTE_", "OMP_", "WANDB_", "HF_", "PYTHON")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TIME = re.compile(r"(\d+-)?\d{1,2}:\d{2}:\d{2}")
# A name with one of these is a secret: it stays in the site file, which nobody else may read.
SECRET = re.compile(r"\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*")
# A secret given inside of another value, and not by another program or variable.
SECRET_GIVEN = re.compile(rf"({SECRET.pattern})=[\"']?[^\s\"'$]")
MOST_CHARACTERS = 10_000  # of a line
EXAMPLE = "slurm/site.env.example"


@dataclass(frozen=True)
class Site:
    """A site file, read and checked."""

    path: Path
    values: dict[str, str]  # every NLD_ name -> its value, the defaults included
    environment: dict[str, str]  # variables that are passed on to the ranks
    secrets: tuple[str, ...] = ()  # names of those that jobs read from the file themselves; their values are not here

    @property
    def gpus_per_node(self) -> int:
        return int(self.values["NLD_GPUS_PER_NODE"])

    @property
    def job_folder(self) -> Path:
        """The folder in which the jobs run: relative paths of a run start here."""
        return Path(self.values["NLD_FOLDER"])


def read_site(path: Path) -> Site:
    """Read and check a site file. Raises: UserError where it is missing, incomplete, or holds a bad name or value."""
    require(
        path.is_file(), f"no site file {path}", "a file of NAME=value lines", f"copy {EXAMPLE} there and fill it in"
    )
    found = dict(parse_site_line(path, number, line) for number, line in site_lines(path))
    unknown = [name for name in found if name not in KNOWN and not name.startswith(PASSED_ON)]
    if unknown:
        guess = nearest_name(unknown[0], KNOWN)
        allowed = f"the names of {EXAMPLE}, and names that begin with {', '.join(PASSED_ON)}"
        raise UserError(f"{path}: unknown name {unknown[0]}", allowed, f"did you mean {guess}?")
    missing = [name for name in REQUIRED if not found.get(name)]
    require(not missing, f"{path} without {', '.join(missing)}", f"all of {', '.join(REQUIRED)}", f"see {EXAMPLE}")
    values = DEFAULTS | {name: value for name, value in found.items() if name in KNOWN}
    check_site_values(path, values)
    check_secrets_kept(path, found)
    secrets = tuple(secret_names(found))
    passed_on = {name: value for name, value in found.items() if name not in KNOWN and name not in secrets}
    return Site(path, values, passed_on, secrets)


def secret_names(found: Mapping[str, str]) -> list[str]:
    """The names of a site file that hold a secret."""
    return [name for name, value in found.items() if value and name not in KNOWN and SECRET.fullmatch(name)]


def check_secrets_kept(path: Path, found: Mapping[str, str]) -> None:
    """Refuse secrets that others may read, and secrets inside of values that scripts hold. Raises: UserError."""
    secrets, mode = secret_names(found), stat.S_IMODE(path.stat().st_mode)
    private = not secrets or not mode & (stat.S_IRWXG | stat.S_IRWXO)
    what, do = f"{path} holds {', '.join(secrets)} and has mode {mode:04o}", f"chmod 600 {shlex.quote(str(path))}"
    require(private, what, "mode 0600: its owner alone reads it", do)
    for name, value in found.items():
        given = SECRET_GIVEN.search(value)
        if given is not None and name not in secrets:
            do = f"give {given[1]} a line of its own, or read it from a file: $(cat FILE)"
            raise UserError(f"{path}: {given[1]} inside of {name}", "values that may stand in a job's script", do)


def site_lines(path: Path) -> list[tuple[int, str]]:
    """The number and the text of every line that is neither empty nor a comment."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}", "a text file", f"see {EXAMPLE}") from error
    lines = list(enumerate(text.split("\n"), 1))
    longest = max(len(line) for _, line in lines)
    require(longest <= MOST_CHARACTERS, f"{path} has a line of {longest} characters", "lines of values", "correct it")
    return [(number, line.strip()) for number, line in lines if line.strip() and not line.strip().startswith("#")]


def parse_site_line(path: Path, number: int, line: str) -> tuple[str, str]:
    """The name and the value of a line NAME=value, quoted as in a shell; a comment may follow. Raises: UserError."""
    do = "quote values with spaces"
    secret = SECRET.search(line)
    shown = f"a line with {secret[0]}" if secret else repr(line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"{path} line {number}: {error}", "NAME=value", do) from None
    name, equals, value = words[0].partition("=")
    is_plain = len(words) == 1 and bool(equals) and NAME.fullmatch(name) is not None
    require(is_plain, f"{path} line {number}: {shown}", "NAME=value", do)
    return name, value


def check_site_values(path: Path, values: dict[str, str]) -> None:
    """Refuse values that no job could start with. Raises: UserError."""

    def demand(ok: bool, name: str, allowed: str, do: str = f"see {EXAMPLE}") -> None:
        require(ok, f"{path}: {name}={values[name]!r}", allowed, do)

    demand(values["NLD_GPUS_PER_NODE"].isdigit(), "NLD_GPUS_PER_NODE", "a whole number; 0 trains on CPUs")
    demand(values["NLD_SAVE_SECONDS"].isdigit(), "NLD_SAVE_SECONDS", "whole seconds")
    demand(values[STARTS].isdigit() and int(values[STARTS]) > 0, STARTS, "a whole number above 0")
    demand(TIME.fullmatch(values["NLD_TIME"]) is not None, "NLD_TIME", "HOURS:MINUTES:SECONDS, or DAYS-HH:MM:SS")
    folder = Path(values["NLD_FOLDER"])
    demand(folder.is_absolute() and folder.is_dir(), "NLD_FOLDER", "an absolute path of a folder that is there")
    kind, image = values["NLD_CONTAINER"], values["NLD_IMAGE"]
    demand(kind in CONTAINERS, "NLD_CONTAINER", ", ".join(CONTAINERS))
    demand(
        (kind == NONE) == (not image), "NLD_IMAGE", f"an image with NLD_CONTAINER=pyxis or apptainer, not with {NONE}"
    )
    if image.startswith("/"):
        demand(Path(image).exists(), "NLD_IMAGE", "a file that is there, or the name of an image in a registry")
    if kind == NONE:
        command = folder / values["NLD_COMMAND"]
        demand(
            command.is_file(), "NLD_COMMAND", f"the nld command, from {folder} or by its absolute path", "make setup"
        )

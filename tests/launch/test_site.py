"""Site files: what is read, and what is refused before anything is submitted."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.errors import UserError
from nld_train.launch.site import DEFAULTS, KNOWN, REQUIRED, parse_site_line, read_site, site_lines


def test_a_good_file_is_read(site_file: Callable[..., Path]) -> None:
    site = read_site(site_file(NLD_SETUP='"module load cuda"  # twelve', NCCL_DEBUG="WARN"))
    assert site.gpus_per_node == 8
    assert site.values["NLD_SETUP"] == "module load cuda"
    assert site.values["NLD_CONTAINER"] == "none", "the default"
    assert site.environment == {"NCCL_DEBUG": "WARN"}


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"NLD_SETUP=caf\xe9", "is not UTF-8"), (b"# " + b"x" * 2_000_000, "has a line of 2000002 characters")],
)
def test_bytes_and_lines_that_no_site_has_are_refused_at_once(site_file, line: bytes, said: str) -> None:
    path = site_file()
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=said):
        read_site(path)


def test_a_character_that_ends_lines_elsewhere_may_stand_in_a_value(site_file) -> None:
    assert read_site(site_file(NLD_SETUP='"a\u2028b\x85c"')).values["NLD_SETUP"] == "a\u2028b\x85c"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_name_is_refused(site_file: Callable[..., Path], name: str) -> None:
    for value in (None, ""):
        with pytest.raises(UserError, match=f"without {name}"):
            read_site(site_file(**{name: value}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"NLD_ACOUNT": "team"}, "did you mean NLD_ACCOUNT"),
        ({"NLD_TIME": "4 hours"}, "line 5"),
        ({"NLD_TIME": "'4 hours'"}, "HOURS:MINUTES:SECONDS"),
        ({"NLD_GPUS_PER_NODE": "eight"}, "a whole number"),
        ({"NLD_FOLDER": "checkout"}, "an absolute path"),
        ({"NLD_FOLDER": "/no/such/folder"}, "an absolute path"),
        ({"NLD_COMMAND": "bin/nld"}, "make setup"),
        ({"NLD_CONTAINER": "docker"}, "none, pyxis, apptainer"),
        ({"NLD_CONTAINER": "pyxis"}, "NLD_IMAGE"),
        ({"NLD_IMAGE": "nemo.sqsh"}, "NLD_IMAGE"),
        ({"NLD_CONTAINER": "pyxis", "NLD_IMAGE": "/no/such/image.sqsh"}, "a file that is there"),
        ({"NLD_SAVE_SECONDS": "5m"}, "whole seconds"),
        ({"NLD_STARTS_WITHOUT_PROGRESS": "0"}, "above 0"),
        ({"NLD_SETUP": "'module"}, "No closing quotation"),
    ],
)
def test_a_bad_file_is_refused(site_file: Callable[..., Path], changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_site(site_file(**changes))


def test_a_missing_file_names_the_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"site\.env\.example"):
        read_site(tmp_path / "none.env")


def test_the_example_explains_every_name_and_bash_reads_the_same(request: pytest.FixtureRequest) -> None:
    path = request.config.rootpath / "slurm" / "site.env.example"
    values = dict(parse_site_line(path, number, line) for number, line in site_lines(path))
    assert {name for name in values if name.startswith("NLD_")} == set(KNOWN)
    lines = path.read_text().splitlines()
    for number, _ in site_lines(path):
        assert lines[number - 2].startswith("#"), f"line {number} has no comment above it"
    for name, value in values.items():
        script = f'set -a; . "$0"; printf %s "${name}"'
        read = subprocess.run(["bash", "-c", script, str(path)], capture_output=True, text=True, check=True)
        assert read.stdout == value


def test_the_body_sets_the_same_defaults_by_hand(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "slurm" / "train.sbatch").read_text()
    for name in ("NLD_SETUP", "NLD_CONTAINER", "NLD_IMAGE", "NLD_MOUNTS"):
        assert f'"${{{name}:={DEFAULTS[name]}}}"' in text


def test_secrets_stay_in_a_file_that_its_owner_alone_reads(site_file: Callable[..., Path]) -> None:
    path = site_file(WANDB_API_KEY="'hush 1'", HF_TOKEN="hush2", HF_HOME="/shared/hf", WANDB_KEY="")
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(UserError, match=rf"WANDB_API_KEY, HF_TOKEN and has mode {mode:04o}.*do: chmod 600 {path}"):
            read_site(path)
    path.chmod(0o600)
    site = read_site(path)
    assert site.secrets == ("WANDB_API_KEY", "HF_TOKEN")
    assert site.environment == {"HF_HOME": "/shared/hf", "WANDB_KEY": ""}
    assert "hush" not in repr(site)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"NLD_SETUP": "'module load x; export WANDB_API_KEY=hush'"}, "WANDB_API_KEY inside of NLD_SETUP"),
        ({"NLD_SBATCH": "--export=ALL,HF_TOKEN='hush'"}, "HF_TOKEN inside of NLD_SBATCH"),
        ({"WANDB_API_KEY": "hush hush"}, "line 9: a line with WANDB_API_KEY"),
        ({"WANDB_API_KEY": "'hush"}, "line 9: No closing quotation"),
    ],
)
def test_a_secret_elsewhere_is_refused_and_not_repeated(
    site_file: Callable[..., Path], changes: dict[str, str], said: str
) -> None:
    path = site_file(**changes)
    path.chmod(0o600)
    with pytest.raises(UserError, match=said) as caught:
        read_site(path)
    assert "hush" not in str(caught.value)


def test_a_setup_may_read_a_secret_from_elsewhere(site_file: Callable[..., Path]) -> None:
    setup = "export HF_TOKEN=$(cat ~/.token) WANDB_API_KEY=$KEY"
    assert read_site(site_file(NLD_SETUP=f"'{setup}'")).values["NLD_SETUP"] == setup

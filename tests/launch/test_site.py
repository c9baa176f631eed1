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

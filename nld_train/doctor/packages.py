"""Python and the installed packages against the project's own pins.

The pins are read from the metadata that was installed with the project, so that this works outside a checkout.
"""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nld_train.doctor.finding import DoctorFinding

PROJECT = "nld-train"
MAKE = "run `make setup`"
# NVIDIA's containers build Transformer Engine as one package; whether it works is a check of its own.
PARTS_OF_TRANSFORMER_ENGINE = {"transformer-engine-cu13", "transformer-engine-torch"}


def software_findings() -> list[DoctorFinding]:
    """The findings on Python and on every package."""
    try:
        wanted, pins = metadata(PROJECT)["Requires-Python"], requires(PROJECT)
    except PackageNotFoundError:
        do = "install the project: `make setup`, or `pip install --no-deps -e .` in a container"
        return [DoctorFinding("packages", f"{PROJECT} is not installed, so its pins are unknown", "note", do)]
    assert wanted is not None and pins is not None, f"{PROJECT} is installed without its requirements"
    return [python_finding(wanted, platform.python_version()), *package_findings(pins)]


def python_finding(wanted: str, running: str) -> DoctorFinding:
    """Compare the running Python with a specifier such as ">=3.12,<3.13"."""
    if running in SpecifierSet(wanted):
        return DoctorFinding("Python", running)
    return DoctorFinding(
        "Python", f"{running}, the project wants {wanted}", "FAIL", f"{MAKE}; it gets that Python itself"
    )


def package_findings(pins: Sequence[str]) -> list[DoctorFinding]:
    """Compare the installed versions with requirements such as "torch==2.13.0".

    Returns: one finding where all agree, else one for each that does not.
    """
    wanted = [Requirement(pin) for pin in pins]
    wanted = [pin for pin in wanted if pin.marker is None or pin.marker.evaluate()]
    others = [finding for finding in map(package_problem, wanted) if finding is not None]
    return others or [DoctorFinding("packages", f"all {len(wanted)} as pinned")]


def package_problem(pin: Requirement) -> DoctorFinding | None:
    """What is wrong with one installed package, or None."""
    check, wanted = f"package {pin.name}", f"the project is made for {pin.specifier or 'any version'}"
    try:
        found = version(pin.name)
    except PackageNotFoundError:
        if pin.name in PARTS_OF_TRANSFORMER_ENGINE:
            do = "nothing, where Transformer Engine loads (below); else " + MAKE
            return DoctorFinding(check, f"not installed; {wanted}", "note", do)
        return DoctorFinding(check, f"not installed; {wanted}", "FAIL", MAKE)
    if pin.specifier.contains(found, prereleases=True):
        return None
    return DoctorFinding(
        check, f"{found}; {wanted}", "note", f"{MAKE}; or, in a container, run `make test` with its version"
    )

"""Installed versions against pins: the project's own, and made-up ones on the same packages."""

from importlib.metadata import requires, version

from nld_train.doctor.packages import PROJECT, package_findings, python_finding, software_findings


def test_this_environment_is_the_pinned_one() -> None:
    assert [finding.verdict for finding in software_findings()] == ["ok", "ok"]


def test_the_pins_are_those_of_pyproject(request) -> None:
    declared = (request.config.rootpath / "pyproject.toml").read_text()
    pins = requires(PROJECT)
    assert pins and f'"torch=={version("torch").partition("+")[0]}"' in declared
    assert any(pin.startswith("torch==") for pin in pins)


def test_another_version_is_noted() -> None:
    (finding,) = package_findings(["numpy==0.1", "safetensors"])
    assert finding.verdict == "note"
    assert version("numpy") in finding.found and "==0.1" in finding.found


def test_a_missing_package_fails() -> None:
    (finding,) = package_findings(["numpy", "no-such-package-anywhere>=1"])
    assert finding.verdict == "FAIL" and "make setup" in finding.do


def test_transformer_engine_in_one_piece_is_left_to_its_own_check() -> None:
    """NVIDIA's containers: one package, no parts. Here the part is asked for under a version that is not there."""
    (finding,) = package_findings(["transformer-engine-cu13==0.1"])
    assert finding.verdict == "note"


def test_requirements_of_other_platforms_do_not_count() -> None:
    (finding,) = package_findings(["numpy", "no-such-package-anywhere; sys_platform == 'never'"])
    assert finding.verdict == "ok" and "1" in finding.found


def test_another_python_fails() -> None:
    assert python_finding(">=3.12,<3.13", "3.12.4").verdict == "ok"
    assert python_finding(">=3.12,<3.13", "3.13.0").verdict == "FAIL"

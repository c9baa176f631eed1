"""What GPUs, Apex and a compiler change, on described machines; Transformer Engine on this one."""

from dataclasses import replace

import pytest
import torch

from nld_train.doctor.accelerator import (
    ApexModules,
    Gpus,
    apex_finding,
    compiler_finding,
    found_apex,
    found_gpus,
    gpu_finding,
    transformer_engine_finding,
)

H100 = "NVIDIA H100 80GB HBM3"
NODE = Gpus(
    names=(H100,) * 8,
    memory=(85_000_000_000,) * 8,
    reported=(H100,) * 8,
    driver="580.65.06",
    cuda="13.0",
    nccl="2.29.7",
    hidden=False,
)
LAPTOP = Gpus(names=(), memory=(), reported=(), driver="", cuda="13.0", nccl="2.29.7", hidden=False)


def test_a_node_of_eight_is_named() -> None:
    finding = gpu_finding(NODE)
    assert finding.verdict == "ok"
    for said in (f"8 x {H100}", "85 GB", "580.65.06", "13.0", "2.29.7"):
        assert said in finding.found


def test_without_a_gpu_the_cpu_runtime_is_named() -> None:
    finding = gpu_finding(LAPTOP)
    assert finding.verdict == "note" and "gloo" in finding.found and "sdpa" in finding.found


def test_gpus_that_torch_cannot_use_fail_unless_they_are_hidden_on_purpose() -> None:
    old_driver = replace(NODE, names=(), memory=(), driver="470.1")
    assert gpu_finding(old_driver).verdict == "FAIL" and "CUDA 13.0" in gpu_finding(old_driver).do
    assert gpu_finding(replace(old_driver, hidden=True)).verdict == "note"


def test_gpus_without_nccl_fail() -> None:
    assert gpu_finding(replace(NODE, nccl="")).verdict == "FAIL"


def test_what_is_found_here_agrees_with_torch() -> None:
    found = found_gpus()
    assert len(found.names) == len(found.memory) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found.cuda == (torch.version.cuda or "")


@pytest.mark.slow  # 6 s
def test_transformer_engine_loads_here() -> None:
    assert transformer_engine_finding(on_gpu=False).verdict == "ok"


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_registrys_apex_is_not_nvidias(on_gpu: bool) -> None:
    finding = apex_finding(ApexModules(package=True, kernels=False, weight_gradients=False), on_gpu)
    assert finding.verdict == "note" and "uninstall" in finding.do


def test_apex_is_optional_and_its_use_is_said() -> None:
    whole, none = ApexModules(True, True, True), ApexModules(False, False, False)
    assert apex_finding(none, on_gpu=False).verdict == apex_finding(whole, on_gpu=False).verdict == "ok"
    assert "weight gradients" in apex_finding(whole, on_gpu=True).found
    assert apex_finding(none, on_gpu=True).verdict == "note"


def test_apex_is_looked_for_by_its_modules(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("apex", "amp_C", "fused_weight_gradient_mlp_cuda"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert found_apex() == ApexModules(True, True, True)


def test_a_gpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_finding(on_gpu=True).verdict == "FAIL"
    assert compiler_finding(on_gpu=False).verdict == "ok"
    (tmp_path / "gcc").touch(mode=0o755)
    assert compiler_finding(on_gpu=True).verdict == "ok"

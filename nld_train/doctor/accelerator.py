"""The GPU and the software above it: driver, CUDA, NCCL, Transformer Engine, Apex; and what each changes in a run."""

import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from nld_train.doctor.finding import DoctorFinding, gb_text

ASK = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
ASK_SECONDS = 30
CPU_RUNTIME = "gloo between ranks, Megatron's own layers, sdpa attention, torch's AdamW"
COMPILERS = ("gcc", "clang")  # what Triton looks for


@dataclass(frozen=True)
class Gpus:
    """What torch can use, and what the driver reports."""

    names: tuple[str, ...]  # names of the devices that torch can use
    memory: tuple[int, ...]  # their memory in bytes
    reported: tuple[str, ...]  # names of the devices that the driver reports
    driver: str  # its version; "" without one
    cuda: str  # version that torch is built for; "" for a CPU build
    nccl: str  # its version; "" where torch has none
    hidden: bool  # CUDA_VISIBLE_DEVICES chooses among the devices


def found_gpus() -> Gpus:
    """The GPUs of this machine."""
    usable = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    lines = [line.rpartition(", ") for line in _ask_driver()]
    nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return Gpus(
        names=tuple(torch.cuda.get_device_name(index) for index in usable),
        memory=tuple(torch.cuda.get_device_properties(index).total_memory for index in usable),
        reported=tuple(name for name, _, _ in lines),
        driver=lines[0][2] if lines else "",
        cuda=torch.version.cuda or "",
        nccl=".".join(map(str, torch.cuda.nccl.version())) if nccl else "",
        hidden="CUDA_VISIBLE_DEVICES" in os.environ,
    )


def _ask_driver() -> list[str]:
    """The lines that nvidia-smi prints; none where it is missing or reaches no driver."""
    if shutil.which(ASK[0]) is None:
        return []
    try:
        done = subprocess.run(ASK, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def gpu_finding(gpus: Gpus) -> DoctorFinding:
    """Which devices a run would train on."""
    versions = f"driver {gpus.driver or 'not found'}, torch for CUDA {gpus.cuda or 'none'}, NCCL {gpus.nccl or 'none'}"
    if gpus.names:
        found = f"{gpu_kinds_text(gpus.names)} of {gb_text(min(gpus.memory))}; {versions}"
        if not gpus.nccl:
            return DoctorFinding("GPU", found, "FAIL", "install a torch with NCCL: `make setup`")
        return DoctorFinding("GPU", found)
    if gpus.reported:
        found = f"{gpu_kinds_text(gpus.reported)} that torch cannot use; {versions}"
        if gpus.hidden:
            return DoctorFinding("GPU", found, "note", "unset CUDA_VISIBLE_DEVICES to train on them")
        return DoctorFinding("GPU", found, "FAIL", f"install a driver for CUDA {gpus.cuda}, or a torch for this driver")
    return DoctorFinding(
        "GPU", f"none: runs take the CPU ({CPU_RUNTIME})", "note", "nothing, for tiny recipes and tests"
    )


def gpu_kinds_text(names: tuple[str, ...]) -> str:
    """("A", "A") -> "2 x A"."""
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def transformer_engine_finding(on_gpu: bool) -> DoctorFinding:
    """Whether Transformer Engine loads. CPUs need it too, because Megatron imports its optimizers by name."""
    check = "Transformer Engine"
    # `import torch`, above, must come first: it loads NCCL for the extension.
    logging.getLogger("TransformerEngine").setLevel(logging.WARNING)
    try:
        import_module("transformer_engine.pytorch")
        installed = version("transformer-engine")
    except (ImportError, OSError, RuntimeError, AssertionError, PackageNotFoundError) as error:
        reason = " ".join(str(error).split())[:160]
        do = "run `make setup`, or train inside NVIDIA's NeMo container"
        return DoctorFinding(check, f"does not load: {type(error).__name__}: {reason}", "FAIL", do)
    if on_gpu:
        return DoctorFinding(
            check, f"{installed} loads: its layers (RMSNorm fused with the next map) and its fused Adam"
        )
    return DoctorFinding(check, f"{installed} loads; without a GPU its kernels are not used")


@dataclass(frozen=True)
class ApexModules:
    """Which modules of NVIDIA's Apex are installed."""

    package: bool  # a package named apex, whoever wrote it
    kernels: bool  # amp_C, which only NVIDIA's brings
    weight_gradients: bool  # fused_weight_gradient_mlp_cuda


def found_apex() -> ApexModules:
    names = ("apex", "amp_C", "fused_weight_gradient_mlp_cuda")
    return ApexModules(*(find_spec(name) is not None for name in names))


def apex_finding(found: ApexModules, on_gpu: bool) -> DoctorFinding:
    """Whether NVIDIA's Apex is installed. It is optional, and another package in the Python registry has its name."""
    if found.package and not found.kernels:
        what = "a package named apex that is not NVIDIA's (no amp_C)"
        return DoctorFinding("Apex", what, "note", "uninstall it: Megatron would take it for NVIDIA's")
    if not on_gpu:
        return DoctorFinding("Apex", f"{'found' if found.kernels else 'not found'}; not used without a GPU")
    if found.weight_gradients:
        return DoctorFinding(
            "Apex", "found: weight gradients are added into the float32 buffer by the kernel that makes them"
        )
    what = "found without fused_weight_gradient_mlp_cuda" if found.kernels else "not found"
    does = "weight gradients are added in a kernel of their own; all else is Transformer Engine's"
    return DoctorFinding(
        "Apex", f"{what}: {does}", "note", "nothing; NVIDIA's NeMo container has it, for a little more speed"
    )


def compiler_finding(on_gpu: bool) -> DoctorFinding:
    """Whether there is a C compiler: Triton needs it to compile flex_attention at the first step."""
    found = os.environ.get("CC") or next((name for name in COMPILERS if shutil.which(name)), None)
    if found is not None:
        return DoctorFinding("C compiler", found)
    if not on_gpu:
        return DoctorFinding("C compiler", "none; not needed without a GPU")
    return DoctorFinding("C compiler", "none: flex_attention cannot be compiled", "FAIL", "install gcc, or set CC")


def accelerator_findings(gpus: Gpus) -> list[DoctorFinding]:
    on_gpu = bool(gpus.names)
    return [
        gpu_finding(gpus),
        transformer_engine_finding(on_gpu),
        apex_finding(found_apex(), on_gpu),
        compiler_finding(on_gpu),
    ]

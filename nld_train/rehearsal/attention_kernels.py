"""The kernels that torch.compile makes of flex_attention and our masks, compiled for an H100 on a machine without one.

Asking is here; `kernel_process.py` does it. torch refuses to differentiate tensors on a GPU that no driver knows, so
the process is started with a library that stands for the driver and says that there are devices, none of them in use.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nld_train.config import RunConfig
from nld_train.errors import UserError

MOST_SHARED = 232_448  # bytes of shared memory that a block may have on sm_90: 227 KiB of the 228 KiB of a processor
MOST_REGISTERS = 255  # of a thread
ATTENTION = "_tem_"  # in the names of kernels that torch makes from its templates
# c10's count of devices (0 until the process asks for more) and whether one is in use; and the driver's two functions
# that torch looks up by name.
DRIVER = """\
static signed char devices = 0;
void pretend_devices(signed char count) { devices = count; }
signed char _ZN3c104cuda12device_countEv(void) { return devices; }
_Bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) { (void)device; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{ (void)device; *flags = 0; *active = 0; return 0; }
int cuGetErrorString(int error, const char **text) { (void)error; *text = "no device"; return 0; }
"""


@dataclass(frozen=True)
class AttentionCase:
    """A row's attention on one rank: [noisy | clean] of `length` tokens each where `dual`."""

    length: int  # L
    packed: bool  # documents of several lengths, kept apart
    dual: bool = True
    heads: int = 32  # of this rank
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 32

    def __str__(self) -> str:
        rows = f"{2 * self.length if self.dual else self.length:,} positions"
        return f"L {self.length:,}, {rows}, {self.heads}/{self.kv_heads} heads{', packed' if self.packed else ''}"


@dataclass(frozen=True)
class CompiledKernel:
    """What the assembler says of one kernel."""

    name: str
    backward: bool
    registers: int  # of a thread
    spilled: int  # bytes of a thread's registers that lie in memory
    shared: int  # bytes of a block

    @property
    def fits(self) -> bool:
        """Whether sm_90 can start it."""
        return self.registers <= MOST_REGISTERS and self.shared <= MOST_SHARED


def case_of_run(run: RunConfig) -> AttentionCase:
    """The attention of one rank of the run, without context parallelism."""
    model, cut = run.model, run.parallel.tensor
    return AttentionCase(
        length=run.data.sequence_length,
        packed=run.diffusion.document_mask,
        dual=run.diffusion.dual,
        heads=model.heads // cut,
        kv_heads=model.kv_heads // cut,
        head_dim=model.head_dim,
        block_size=run.diffusion.block_size,
    )


def compile_kernels(case: AttentionCase) -> list[CompiledKernel]:
    """The forward and backward kernels of a case in bf16; a minute. Raises: UserError without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("no C compiler", "gcc or clang, or CC", "install gcc")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source, library, answer = folder / "driver.c", folder / "libcuda.so.1", folder / "answer.json"
        source.write_text(DRIVER, encoding="utf-8")
        name = "-Wl,-soname,libcuda.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", name, "-o", str(library), str(source)], check=True)
        caches = {name: f"{place}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        own = {**os.environ, **caches, "LD_PRELOAD": str(library), "CUDA_VISIBLE_DEVICES": ""}
        own["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no workers that could outlive it
        words = [str(library), json.dumps(asdict(case)), str(answer)]
        command = [sys.executable, "-m", "nld_train.rehearsal.kernel_process", *words]
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case} was not compiled:\n{done.stderr[-4000:]}")
        return [CompiledKernel(**each) for each in json.loads(answer.read_text(encoding="utf-8"))]


def kernel_markdown(found: Sequence[tuple[AttentionCase, list[CompiledKernel]]]) -> str:
    """The table as Markdown; a cell is "registers / bytes spilled / bytes of shared memory".

    The last column is of the small kernels beside attention's own: the most of each, of all the ways to run them that
    torch would try.
    """
    head = ["| attention | forward | backward | its row sums |", "|---|---|---|---|"]
    rows = []
    for case, kernels in found:
        own = [each for each in kernels if ATTENTION in each.name]
        cells = [_cell([each for each in own if each.backward == backward]) for backward in (False, True)]
        rows.append(f"| {case} | {' | '.join(cells)} | {_cell([each for each in kernels if each not in own])} |")
    return "\n".join([*head, *rows])


def _cell(kernels: Sequence[CompiledKernel]) -> str:
    registers, spilled, shared = (
        max(vars(each)[part] for each in kernels) for part in ("registers", "spilled", "shared")
    )
    return f"{registers} / {spilled} / {shared:,}"

"""The process behind `attention_kernels.compile_kernels`: LIBRARY CASE ANSWER.

torch.compile traces flex_attention on fake tensors, forward and backward, and its code generator is asked for the
source alone. Triton then compiles every kernel of it for sm_90, and the toolkit beside it reads what the code needs.
"""

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nld_train.exit_status import FINISHED
from nld_train.files import write_text

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", re.DOTALL)
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=int(85e9),
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65_536,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


def main() -> int:
    """Compile one case. Returns: the exit status."""
    library, case, answer = sys.argv[1:]
    _state_facts()  # before anything binds torch.cuda's functions
    sources = _generated_sources(library, SimpleNamespace(**json.loads(case)))
    write_text(Path(answer), json.dumps([kernel for source in sources for kernel in _compiled(source)]))
    return FINISHED


def _state_facts() -> None:
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_properties = lambda *_: H100
    cuda.get_device_capability = lambda *_: (H100.major, H100.minor)
    cuda.get_device_name = lambda *_: H100.name
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    # A function of its own for every name, because torch.compile has a rule for each object.
    for name in ("current_device", "_exchange_device", "_maybe_exchange_device"):
        setattr(cuda, name, lambda *_: 0)
    for name in ("set_rng_state", "set_device", "synchronize", "_lazy_init"):
        setattr(cuda, name, lambda *_, **__: None)


def _generated_sources(library: str, case: Any) -> list[str]:
    """What the code generator writes for a forward and a backward."""
    import torch._functorch.config as autograd_config
    import torch._inductor.config as config
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.utils import get_code
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention.flex_attention import flex_attention
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from nld_train.attention import flex
    from nld_train.dual_stream.mask_spec import MaskSpec
    from nld_train.dual_stream.row_layout import RowLayout

    class NoDevice(FakeTensorMode):
        avoid_device_init = True

    autograd_config.force_non_lazy_backward_lowering = True  # the backward without running a forward
    autograd_config.enable_autograd_cache = config.fx_graph_cache = False
    config.use_static_triton_launcher = False  # a launcher of a driver
    config.joint_graph_constant_folding = False  # it would compute on the device
    joint_graph.lazy_init = post_grad.lazy_init = lambda *_: None  # patterns of other attentions, traced on the device
    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    flex.compile_on_gpu = lambda function, *_, **__: function  # the mask's tables are fake too
    # The kernel reads the table of documents, and no code depends on what stands in it.
    MaskSpec.documents_on = lambda spec, device: torch.zeros(1, case.length, dtype=torch.int64, device=device)
    layout = RowLayout(case.length, case.block_size, case.dual)
    quarter = case.length // 4
    documents = ((quarter, quarter, case.length - 2 * quarter),) if case.packed else None
    with NoDevice(allow_non_fake_inputs=True):
        # From here on: the mode above has found no device, and has put a guard in place that needs none.
        ctypes.CDLL(library).pretend_devices(127)
        device = torch.device("cuda", 0)
        mask = flex.flex_block_mask(MaskSpec(layout, documents=documents), device)
        shapes = [(1, heads, layout.size, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
        query, key, value = (
            torch.empty(shape, dtype=torch.bfloat16, device=device, requires_grad=True) for shape in shapes
        )

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
            return flex_attention(query, key, value, block_mask=mask, scale=0.1, enable_gqa=True)

        compiled = torch.compile(attend, dynamic=False, fullgraph=True)
        return get_code(compiled, query, key, value)


def _compiled(source: str) -> Iterator[dict[str, Any]]:
    """The kernels of a generated source, each as it would first be tried on a GPU."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime import triton_helpers

    triton_helpers.set_driver_to_gpu = lambda: None
    for name, text in KERNEL.findall(source):
        tuner = vars(PyCodeCache.load(text))[name]
        for settings in tuner.configs:
            binary = tuner._precompile_config(settings).kernel
            registers, spilled = _register_use(binary.asm["cubin"])
            yield {
                "name": name,
                "backward": "backward" in name,
                "registers": registers,
                "spilled": spilled,
                "shared": binary.metadata.shared,
            }


def _register_use(code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, which is where spilled registers lie."""
    from triton.backends import nvidia

    reader = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        said = subprocess.run([reader, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = USAGE.search(said)
    assert found is not None, f"cuobjdump said: {said}"
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())

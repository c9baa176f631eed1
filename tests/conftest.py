"""What tests of several rooms share."""

import json
import os
import signal
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.prepare_text import TextOptions, prepare_text
from data_prep.train_tokenizer import train_tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: two at a time, the quick ones then fill what is left of either half."""
    heavy = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("megatron")}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """The processes of pytest-xdist ignore Ctrl-C, and so would every process that a test starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs remember which token files they found whole; those of tests are gone tomorrow. uv's packages stay."""
    before = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("UV_CACHE_DIR", f"{before}/uv")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of 400 tokens and two token files of real text: data/a of long documents, data/b of
    short ones, several to a row. The text is Python's library: our own code changes with every commit."""
    folder = tmp_path_factory.mktemp("prepared")
    library = Path(sysconfig.get_path("stdlib"))
    text = [library / name for name in ("asyncio", "email", "importlib", "json", "logging", "unittest", "xml")]
    train_tokenizer(text, folder / "tokenizer", vocab_size=400)
    lines = [line for path in sorted(text[0].rglob("*.py")) for line in path.read_text().splitlines() if line.strip()]
    snippets = folder / "snippets.jsonl"
    snippets.write_text("".join(json.dumps({"text": "\n".join(lines[i : i + 2])}) + "\n" for i in range(0, 3000, 2)))
    for name, source in (("a", text), ("b", [snippets])):
        prepare_text(source, folder / "data" / name, folder / "tokenizer", TextOptions(workers=1))
    return folder


@pytest.fixture(scope="session")
def vision_export(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export, in float32, of a random Ministral-3 with its tower."""
    import torch

    from tests.convert.conftest import export, imported
    from tests.vision_folder import save_ministral, stock_ministral

    made = tmp_path_factory.mktemp("vision")
    save_ministral(stock_ministral(), prepared / "tokenizer", made / "ministral")
    return export(imported(made / "ministral", made / "out"), made / "hf", dtype=torch.float32)


@pytest.fixture(scope="session")
def cpu_runtime() -> None:
    """Megatron binds CUDA kernels by name when it is first imported, so this comes before any import of it."""
    from nld_train.train import cpu_runtime, patches

    cpu_runtime.install_cpu_runtime()
    patches.apply_patches()


@pytest.fixture(autouse=True)
def before_megatron(request: pytest.FixtureRequest) -> None:
    """Whichever test of a process imports Megatron first, the later ones find it as training does."""
    if request.node.get_closest_marker("megatron") is not None:
        request.getfixturevalue("cpu_runtime")


@pytest.fixture(scope="session")
def one_rank(cpu_runtime: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Megatron in this process, on the CPU, in a real process group of one rank."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    store = tmp_path_factory.mktemp("rendezvous") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()

"""An export in an environment that has only torch, transformers and safetensors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = re.compile(r"^([\w.-]+==[^\s;]+)", re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of the second environment."""
    return environment(tmp_path_factory.mktemp("second"), ["torch", "transformers", "safetensors"])


def environment(folder: Path, packages: list[str], locked: bool = True, overrides: tuple[str, ...] = ()) -> Path:
    """Python of a new environment with these packages, from uv's cache where it can be.

    locked: all packages at the versions of the lock; False: torch alone. overrides: requirements that replace those of
    the packages themselves.
    """
    named = ROOT / ".uv" / "path"
    if not named.is_file():
        pytest.skip("the second environment needs uv: run `make setup` first")
    uv = str((ROOT / named.read_text().strip()).resolve())
    uv = uv if Path(uv).is_file() else named.read_text().strip()
    pins = LOCKED.findall((ROOT / "requirements.lock").read_text())
    pins = pins if locked else [pin for pin in pins if pin.startswith("torch==")]
    (folder / "constraints.txt").write_text("\n".join(pins))
    (folder / "overrides.txt").write_text("\n".join(overrides))
    made = folder / "venv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(made)], check=True)
    python = made / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--python", str(python), "-c", str(folder / "constraints.txt"), *packages]
    install += ["--overrides", str(folder / "overrides.txt")] if overrides else []
    # Elsewhere than in this project, whose own settings of uv leave packages out.
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"uv could not install {packages}: {done.stderr[-500:]}")
    return python


def run(python: Path, code: str, folder: Path, tmp_path: Path) -> str:
    """Run code in the export's folder, with caches of its own and no way to the network or to this project."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), "-I", "-c", code],
        cwd=folder,
        env=kept | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_the_environment_has_neither_us_nor_megatron(python: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('nld_train', 'megatron', 'peft') if u.find_spec(n)])"
    assert run(python, code, tmp_path, tmp_path).strip() == "[]"


def test_an_export_loads_and_generates_as_its_readme_says(python: Path, exported: Path, tmp_path: Path) -> None:
    shown = run(python, "\n".join(snippets(exported)[:2]), exported, tmp_path)
    lines = [line for line in shown.splitlines() if " forwards " in line]
    assert [line.split("  ")[0] for line in lines] == ["left to right", "block diffusion", "self-speculation"]
    assert all("def main" in line for line in lines)
    assert "causal model      def main" in shown and re.search(r"joint loss +\d+\.\d+", shown)


def test_its_logits_are_those_of_this_environment(python: Path, exported: Path, tmp_path: Path) -> None:
    import torch

    from nld_train.convert.exported_code import ExportedModel
    from nld_train.convert.hf_folder import open_hf_folder
    from nld_train.convert.reference_network import ProbeRow

    code = f"""
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()
assert model.dtype == torch.float32 and not any(p.is_meta for p in model.parameters())
with torch.no_grad():
    torch.save(model(torch.arange(24)[None], use_causal_mask=True).logits, {str(tmp_path / "logits.pt")!r})
"""
    run(python, code, exported, tmp_path)
    described, weights = open_hf_folder(exported)
    row = ProbeRow(torch.arange(24), torch.arange(24), 8, 0)
    here = ExportedModel(exported, described, weights, described.model.layers).ar_logits(row)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt")[0], here, rtol=0, atol=1e-5)

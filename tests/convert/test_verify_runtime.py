"""`nld convert verify DIR --runtime`: it passes where it should, and finds what is wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.cli import main
from nld_train.convert.verify_runtime import NEW, compare_answer, own_model, probe_prompts, verify_runtime
from nld_train.convert.weight_table import MINISTRAL_TEXT
from nld_train.errors import UserError
from tests.convert.conftest import export
from tests.convert.test_adapter import both, drafter_run  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def twin(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(random_run, tmp_path_factory.mktemp("twin") / "hf", dtype=torch.float32, naming=MINISTRAL_TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tri-mode", "left to right"])
def test_transformers_decodes_both_forms_as_we_do(exported, twin, monkeypatch, caplog, form) -> None:
    folder = exported if form == "tri-mode" else twin
    monkeypatch.setattr("sys.argv", ["nld", "convert", "verify", str(folder), "--runtime", "transformers"])
    with caplog.at_level("INFO"):
        assert main() == 0
    assert "64 of 64 greedy tokens equal" in caplog.text and "up to 40 positions" in caplog.text


@pytest.mark.slow
def test_peft_drafts_with_the_adapter_as_the_added_weights_do(both) -> None:  # noqa: F811
    (finding,) = verify_runtime(both, "peft")
    assert "64 of 64 greedy tokens equal" in finding.seen


def test_another_weight_is_found(exported, copy_of) -> None:
    """The comparison can fail: the answers of one model are not those of another."""
    from nld_train.convert.hf_folder import open_hf_folder

    described, weights = open_hf_folder(exported)
    model = own_model(described, weights, None)
    prompt = probe_prompts(described)[1]
    made, _ = model.ar_generate(torch.tensor([prompt]), NEW, eos_token_id=-1)
    with torch.no_grad():
        logprobs = model(made, use_causal_mask=True).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    tokens = made[0, len(prompt) :]
    answer = {"tokens": tokens.tolist(), "logprobs": logprobs.gather(-1, tokens[:, None])[:, 0].tolist()}
    assert compare_answer(model, prompt, answer).equal == NEW
    folder = copy_of(exported)
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layers.1.mlp.down_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    other = own_model(*open_hf_folder(folder), None)
    seen = compare_answer(other, prompt, answer)
    assert seen.equal < NEW or seen.worst > 1e-2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--runtime", "transformers"], "no config.json in"),
        (["EXPORT", "--runtime", "vllm"], "vllm with .*; allowed: an export with --as ministral3"),
        (["TWIN", "--runtime", "mlx-vlm"], "mlx-vlm with .*; allowed: an export; do"),
        (["EXPORT", "--runtime", "peft"], "no linear_spec_lora in"),
        (["EXPORT", "--runtime", "transformers", "--python", "nowhere"], "--python nowhere: No such file"),
        (["EXPORT", "EXPORT", "--runtime", "transformers"], "--runtime with a run"),
        (["EXPORT"], "one folder without --runtime"),
    ],
)
def test_what_cannot_be_compared_is_one_line(exported, twin, random_run, monkeypatch, capsys, words, said) -> None:
    import re

    folders = {"RUN": str(random_run), "EXPORT": str(exported), "TWIN": str(twin)}
    monkeypatch.setattr("sys.argv", ["nld", "convert", "verify", *(folders.get(word, word) for word in words)])
    assert main() == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1


def test_an_absent_runtime_is_said(twin, monkeypatch) -> None:
    import importlib.util

    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(UserError, match=f"vllm is not installed for {sys.executable}.*--python"):
        verify_runtime(twin, "vllm")


def test_the_request_file_needs_nothing_of_ours() -> None:
    import ast

    from nld_train.convert import foreign_runtime

    tree = ast.parse(Path(foreign_runtime.__file__).read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in modules if name.split(".")[0] == "nld_train"]
    assert json.dumps(sorted(foreign_runtime.RUNTIMES)) == '["mlx-vlm", "peft", "transformers", "vllm"]'

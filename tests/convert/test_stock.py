"""The same weights as Ministral3ForCausalLM: bits, logits by transformers' own class, and back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nld_train.convert.actions import ExportRequest, export_checkpoint
from nld_train.convert.source import open_checkpoint_source
from nld_train.convert.verify import compare_with_checkpoint
from nld_train.convert.weight_table import MINISTRAL_TEXT
from nld_train.errors import UserError
from nld_train.recipe import load_recipe
from nld_train.run_folder.frozen import freeze_run
from tests.convert.conftest import export as write
from tests.convert.conftest import imported


@pytest.fixture(scope="module")
def twin(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(random_run, tmp_path_factory.mktemp("twin") / "hf", dtype=torch.float32, naming=MINISTRAL_TEXT)


def test_the_twin_has_the_exports_tensors_under_stock_names(twin, exported) -> None:
    ours, theirs = load_file(exported / "model.safetensors"), load_file(twin / "model.safetensors")
    renamed = {
        name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): tensor for name, tensor in ours.items()
    }
    assert renamed.keys() == theirs.keys()
    assert all(torch.equal(renamed[name], theirs[name]) for name in theirs)
    assert not list(twin.glob("*.py")) and "auto_map" not in (twin / "config.json").read_text()


def test_the_query_scale_stands_where_vllm_and_where_transformers_look(twin) -> None:
    content = json.loads((twin / "config.json").read_text())
    assert content["architectures"] == ["Ministral3ForCausalLM"] and content["model_type"] == "ministral3"
    assert content["llama_4_scaling"] == {"original_max_position_embeddings": 16, "beta": 0.1}
    assert content["rope_parameters"]["llama_4_scaling_beta"] == 0.1 and "rope_theta" not in content


def test_it_verifies_with_transformers_own_class(random_run, twin) -> None:
    findings = [finding.what for finding in compare_with_checkpoint(open_checkpoint_source(random_run), twin)]
    assert findings[:3] == ["tensors", "Megatron -> HF", "HF -> Megatron"]
    assert findings.count("logits, AR") == 2 and "logits, diffusion" not in findings


def test_another_query_scale_is_found(random_run, twin, copy_of) -> None:
    folder, source = copy_of(twin), open_checkpoint_source(random_run)
    content = json.loads((folder / "config.json").read_text())
    content["rope_parameters"]["llama_4_scaling_beta"] = 0.3
    (folder / "config.json").write_text(json.dumps(content))
    model = replace(source.model, rope=replace(source.model.rope, query_scale_beta=0.3))
    compare_with_checkpoint(replace(source, model=model), folder)
    with pytest.raises(UserError, match="describes another model"):
        compare_with_checkpoint(source, folder)


def test_it_loads_as_a_causal_model_without_remote_code(twin, exported) -> None:
    """Its greedy text is that of the export's left-to-right decoding."""
    from transformers import AutoModelForCausalLM

    from nld_train.decode.load import load_model

    prompt = torch.tensor([[5, 9, 31, 7]])
    stock = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32).eval()
    ours = load_model(exported, None, torch.device("cpu"))
    made = stock.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert torch.equal(made, ours.ar_generate(prompt, 40, eos_token_id=-1)[0])


def test_it_is_imported_and_leaves_again_bit_for_bit(twin, exported, tmp_path) -> None:
    back = imported(twin, tmp_path / "back")
    again = write(back, tmp_path / "again", dtype=torch.float32)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (exported / name).read_bytes()
    twin_again = write(back, tmp_path / "twin", dtype=torch.float32, naming=MINISTRAL_TEXT)
    for path in (path for path in twin.iterdir() if path.name != "README.md"):
        assert (twin_again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_text_model_that_transformers_saved_is_imported(prepared, tmp_path) -> None:
    """Tied and untied; its logits stay the same."""
    import shutil

    from transformers import Ministral3Config, Ministral3ForCausalLM

    from nld_train.decode.load import load_model
    from tests.convert.test_ministral import ROPE

    for tied in (True, False):
        folder = tmp_path / f"tied_{tied}"
        shutil.copytree(prepared / "tokenizer", folder)
        torch.manual_seed(0)
        config = Ministral3Config(
            vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rope_parameters=ROPE,
            tie_word_embeddings=tied, initializer_range=0.2,
        )  # fmt: skip
        model = Ministral3ForCausalLM(config).eval()
        model.save_pretrained(folder)
        out = write(imported(folder, tmp_path / f"out_{tied}"), tmp_path / f"hf_{tied}", dtype=torch.float32)
        ids = torch.randint(400, (1, 48), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours = load_model(out, None, torch.device("cpu"))(ids, use_causal_mask=True).logits
            torch.testing.assert_close(ours, model(ids).logits, rtol=0, atol=1e-4)


def test_the_command_writes_it(random_run, tmp_path, monkeypatch, caplog) -> None:
    from nld_train.cli import main

    words = ["nld", "convert", "export", str(random_run), "--to", str(tmp_path / "ar"), "--as", "ministral3"]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    assert json.loads((tmp_path / "ar" / "config.json").read_text())["architectures"] == ["Ministral3ForCausalLM"]


def test_a_drafter_has_no_such_twin(tmp_path) -> None:
    (tmp_path / "drafter").mkdir()
    freeze_run(load_recipe("tiny_drafter", [f"output={tmp_path}/drafter"]))
    with pytest.raises(UserError, match="--as ministral3 of .*, a drafter's run"):
        export_checkpoint(
            ExportRequest(
                output=tmp_path / "drafter", target=tmp_path / "hf", step=None, dtype="fp32", tokenizer=None,
                chat=False, shard_gb=None, verified=True, overwrite=False, layout="ministral3",
            )
        )  # fmt: skip

"""The commands: bad input is one line, and nothing half-written is left."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.train_tokenizer import train_tokenizer
from nld_train import cli
from nld_train.convert.actions import ExportRequest, export_checkpoint, import_folder, verify_folder
from nld_train.data.chat_template import DEFAULT_TEMPLATE
from nld_train.data.manifest import Manifest, read_manifest, write_manifest
from nld_train.doctor.start_checks import check_init
from nld_train.errors import UserError
from nld_train.recipe import run_from_json, run_to_json
from nld_train.run_folder.checkpoints import MANIFEST
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.paths import step_folder
from tests.chat_files import conversation, write_chat_file
from tests.saved import flip


def asked(run: Path, target: Path, **changes) -> ExportRequest:
    given = {
        "output": run,
        "target": target,
        "step": None,
        "dtype": "bf16",
        "tokenizer": None,
        "chat": False,
        "shard_gb": None,
        "verified": True,
        "overwrite": False,
    }
    return ExportRequest(**given | changes)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_verified_and_then_takes_its_name(random_run, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        export_checkpoint(asked(random_run, tmp_path / "hf"))
    assert "Megatron -> HF         every bit equal after rounding to bfloat16" in caplog.text
    assert left(tmp_path) == ["hf"]
    assert left(tmp_path / "hf") == [
        "README.md",
        "blocks_nemotron_labs_diffusion.py",
        "cache_nemotron_labs_diffusion.py",
        "chat_template.jinja",
        "config.json",
        "configuration_nemotron_labs_diffusion.py",
        "decoding_nemotron_labs_diffusion.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_ministral.py",
        "modeling_nemotron_labs_diffusion.py",
        "objective_nemotron_labs_diffusion.py",
        "rows_nemotron_labs_diffusion.py",
        "sampler_features_nemotron_labs_diffusion.py",
        "sampler_network_nemotron_labs_diffusion.py",
        "sampling_nemotron_labs_diffusion.py",
        "sglang_dllm.yaml",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trained_sampler_nemotron_labs_diffusion.py",
    ]
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_chat_ends_with_a_turn(random_run, tmp_path) -> None:
    export_checkpoint(asked(random_run, tmp_path / "hf", chat=True, verified=False))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "hf" / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"]) == (1, 11)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["eos_token"] == "<|im_end|>", name


def test_a_run_on_conversations_is_exported_for_chat(random_run, copy_of, tmp_path) -> None:
    """Without --chat, without the data; and in a tokenizer's folder without a template the default one is written."""
    run_json = copy_of(random_run) / "run.json"
    said = json.loads(run_json.read_text())
    tokenizer = shutil.copytree(said["data"]["tokenizer"], tmp_path / "bare")
    (tokenizer / "chat_template.jinja").unlink()
    said["data"] |= {"chat": True, "tokenizer": str(tokenizer)}
    said["diffusion"]["document_mask"] = True
    run_json.write_text(json.dumps(said))
    export_checkpoint(asked(run_json.parent, tmp_path / "hf", verified=False))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == 11
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == DEFAULT_TEMPLATE


def test_the_end_of_a_turn_is_that_of_the_chat_files(random_run, copy_of, tmp_path) -> None:
    """Whatever the tokenizer calls its marks; a tokenizer without a beginning of text is as good as any."""
    run_json = copy_of(random_run) / "run.json"
    said = json.loads(run_json.read_text())
    prefix = write_chat_file(tmp_path / "chat", [conversation(9, prompt=3, seed=0)])
    write_manifest(prefix, replace_end(read_manifest(prefix), 2))
    tokenizer = shutil.copytree(said["data"]["tokenizer"], tmp_path / "plain")
    (tokenizer / "special_tokens_map.json").unlink()
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    said["data"] |= {"chat": True, "blend": [str(prefix)], "tokenizer": str(tokenizer)}
    said["diffusion"]["document_mask"] = True
    run_json.write_text(json.dumps(said))
    export_checkpoint(asked(run_json.parent, tmp_path / "hf", verified=False))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "hf" / name).read_text())
        assert (content["bos_token_id"], content["eos_token_id"]) == (None, 2)


def replace_end(manifest: Manifest, token: int) -> Manifest:
    assert manifest.chat is not None
    return replace(manifest, chat=replace(manifest.chat, end_of_turn_id=token))


def test_a_padded_vocabulary_is_exported(random_run, tmp_path) -> None:
    train_tokenizer([Path(__file__).parent], tmp_path / "small", vocab_size=380)
    export_checkpoint(asked(random_run, tmp_path / "hf", tokenizer=tmp_path / "small", verified=False))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == 400
    train_tokenizer([Path(__file__).parent], tmp_path / "large", vocab_size=420)
    with pytest.raises(UserError, match="vocabulary of 420; allowed: at most the model's 400"):
        export_checkpoint(asked(random_run, tmp_path / "no", tokenizer=tmp_path / "large", verified=False))


def test_an_export_is_replaced_only_when_asked(random_run, tmp_path) -> None:
    export_checkpoint(asked(random_run, tmp_path / "hf", verified=False))
    with pytest.raises(UserError, match="hf exists already"):
        export_checkpoint(asked(random_run, tmp_path / "hf", verified=False))
    export_checkpoint(asked(random_run, tmp_path / "hf", verified=False, overwrite=True, dtype="fp32"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_folder_of_something_else_is_never_replaced(random_run, exported, tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    for convert in (
        lambda: export_checkpoint(asked(random_run, tmp_path / "thesis", overwrite=True)),
        lambda: import_folder(exported, tmp_path / "thesis", None, verified=True, overwrite=True),
    ):
        with pytest.raises(UserError, match="thesis exists and has no"):
            convert()


def test_an_import_is_compared_with_its_source(exported, ministral, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        import_folder(exported, tmp_path / "one", None, verified=True, overwrite=False)
        import_folder(ministral(tied=True), tmp_path / "two", 512, verified=True, overwrite=False)
    assert caplog.text.count("HF -> Megatron         every bit equal") == 2
    verify_folder(tmp_path / "one", exported, None, 1)


def damaged(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config.read_text())
    if how == "no config":
        config.unlink()
    elif how == "architecture":
        config.write_text(json.dumps(content | {"architectures": ["LlamaForCausalLM"]}))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif how == "shape":
        config.write_text(json.dumps(content | {"intermediate_size": 120}))
    elif how == "vocabulary":
        config.write_text(json.dumps(content | {"vocab_size": 384}))
        cut = {name: tensor[:384] for name, tensor in load_file(weights).items() if tensor.shape[0] == 400}
        save_file(load_file(weights) | {name: t.contiguous() for name, t in cut.items()}, weights)
    elif how == "mask":
        config.write_text(json.dumps(content | {"mask_token_id": 400}))
    elif how == "unmapped":
        save_file(load_file(weights) | {"encoder.rotary.angles": torch.zeros(2)}, weights)
    elif how == "missing":
        tensors = load_file(weights)
        del tensors["diffusion_head.weight"]
        save_file(tensors, weights)


BAD = {
    "no config": "no config.json in .*; allowed: a Hugging Face checkpoint folder",
    "architecture": r"describes \['LlamaForCausalLM'\]",
    "truncated": r"model.safetensors has [\d,]+ bytes of [\d,]+; allowed: a whole safetensors file",
    "shape": r"mlp.gate_proj.weight has the shape \[128, 64\]; allowed: \[120, 64\] by its config.json",
    "vocabulary": "has a vocabulary of 400; allowed: at most the model's 384",
    "mask": "mask_token_id=400; allowed: ids below vocab_size=400",
    "unmapped": "holds tensors that nothing maps: encoder.rotary.angles",
    "missing": "lacks diffusion_head.weight",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_folder_is_one_line_and_leaves_nothing(exported, copy_of, tmp_path, how: str) -> None:
    folder = copy_of(exported)
    damaged(folder, how)
    target = tmp_path / "made" / "out"
    with pytest.raises(UserError, match=BAD[how]) as caught:
        import_folder(folder, target, None, verified=True, overwrite=False)
    assert "\n" not in str(caught.value)
    assert left(target.parent) == []


def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(random_run, copy_of, tmp_path) -> None:
    output = copy_of(random_run)
    for path in (output / "checkpoints" / "iter_0000000").glob("__0_4*.distcp"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"__0_4\d*\.distcp has 200 of"):
        export_checkpoint(asked(output, tmp_path / "made" / "hf"))
    assert not (tmp_path / "made").exists()


def test_a_folder_that_does_not_verify_leaves_nothing(random_run, tmp_path, monkeypatch) -> None:
    import nld_train.convert.verify as verification

    monkeypatch.setattr(verification, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="logits in AR mode are off by"):
        export_checkpoint(asked(random_run, tmp_path / "made" / "hf", dtype="fp32"))
    assert left(tmp_path / "made") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 7}, "--step 7: no .*; allowed: steps 0; do: choose one"),
        ({"shard_gb": 0.0}, "--shard-gb 0.0; allowed: numbers above 0"),
        ({"tokenizer": Path("nowhere")}, "no tokenizer.json in nowhere"),
        ({"output": Path("nowhere")}, "no model.json in nowhere; allowed: the output folder of"),
    ],
)
def test_bad_requests_are_one_line(random_run, tmp_path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_checkpoint(asked(random_run, tmp_path / "made" / "hf", **changes))
    assert not (tmp_path / "made").exists()


def test_a_run_without_checkpoint_is_one_line(random_run, copy_of, tmp_path) -> None:
    output = copy_of(random_run)
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint in .*; allowed: the output folder of `nld train`"):
        export_checkpoint(asked(output, tmp_path / "hf"))


def test_more_layers_than_there_are_is_one_line(random_run, exported) -> None:
    with pytest.raises(UserError, match="--layers 5; allowed: 1 to 4"):
        verify_folder(random_run, exported, None, 5)


def test_the_command_line_reaches_all_three(random_run, tmp_path, monkeypatch, capsys) -> None:
    def nld(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["nld", "convert", *words])
        return cli.main()

    assert nld("export", str(random_run), "--to", str(tmp_path / "hf"), "--no-verify") == 0
    assert nld("import", str(tmp_path / "hf"), "--to", str(tmp_path / "back"), "--no-verify") == 0
    assert nld("verify", str(random_run), str(tmp_path / "hf"), "--layers", "1") == 0
    assert nld("verify", str(random_run), str(tmp_path / "nowhere")) == 2
    assert capsys.readouterr().err.startswith("nld: no config.json in")


@pytest.mark.slow
def test_conversion_needs_neither_megatron_nor_a_process_group(random_run, tmp_path) -> None:
    code = (
        "import sys; from nld_train.cli import main; sys.argv[0] = 'nld'; assert main() == 0; import torch; "
        "assert not torch.distributed.is_initialized(); assert not [m for m in sys.modules if m.startswith('megatron')]"
    )
    words = ["convert", "export", str(random_run), "--to", str(tmp_path / "hf")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def cut_off(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def truncated(folder: Path) -> None:
    path = next(folder.glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])


def changed(folder: Path) -> None:
    flip(max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_off, "iter_0000005 has no manifest.json: its save was cut off.*--step 0 for the newest whole one"),
        (truncated, r"iter_0000005/\S+ has \S+ of \S+ bytes.*--step 0 for the newest whole one"),
        (changed, r"iter_0000005 is damaged: iter_0000005/\S+ is not what was saved.*use another step"),
    ],
)
def test_an_older_checkpoint_is_read_only_where_it_is_asked_for(
    random_run, exported, copy_of, tmp_path, harm, said
) -> None:
    run = copy_of(random_run)
    newer = step_folder(run, 5)
    shutil.copytree(step_folder(run, 0), newer)
    harm(newer)
    frozen = read_frozen_run(run)
    start = replace(frozen, output=str(tmp_path / "next"), init=str(run))
    for read in (
        lambda: export_checkpoint(asked(run, tmp_path / "hf", verified=False)),
        lambda: verify_folder(run, exported, None, 1),
    ):
        with pytest.raises(UserError, match=said) as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=said.replace("--step ", "init_step=")):
        check_init(start)
    assert not (tmp_path / "hf").exists()
    export_checkpoint(asked(run, tmp_path / "hf", verified=False, step=0))
    check_init(replace(start, init_step=0))
    for step in (3, -1):
        with pytest.raises(UserError, match=f"--step {step}: no .*allowed: steps 0, 5"):
            export_checkpoint(asked(run, tmp_path / "other", step=step))


def test_a_step_is_one_of_a_run(random_run) -> None:
    frozen = read_frozen_run(random_run)
    for changes in ({"init_step": 3}, {"init": str(random_run), "init_step": -1}):
        with pytest.raises(UserError, match="init_step="):
            replace(frozen, **changes)
    assert run_from_json(run_to_json(replace(frozen, init="x", init_step=3))).init_step == 3

"""A drafter's adapter as a PEFT folder: made from a checkpoint of random numbers, loaded with stock PEFT."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.cli import main
from nld_train.config import DrafterConfig
from nld_train.convert.actions import ExportRequest, export_adapter, export_checkpoint, verify_folder
from nld_train.convert.adapter import open_adapter, open_adapter_base, write_adapter
from nld_train.convert.merge_vision import merge_vision
from nld_train.convert.torch_dist import TensorRange, write_torch_dist
from nld_train.convert.weight_table import adapter_mappings
from nld_train.decode import ar, diffusion, self_speculation
from nld_train.decode.load import load_drafter_adapter, load_model
from nld_train.decode.run import ImagePrompts
from nld_train.decode.settings import DecodeConfig
from nld_train.errors import UserError
from nld_train.hf import decoding_nemotron_labs_diffusion as decoding
from nld_train.peft_names import CONFIG, FOLDER, WEIGHTS
from nld_train.recipe import run_to_json
from nld_train.run_folder.checkpoints import MANIFEST, checkpoint_file_names, checksum_files, write_checkpoint_manifest
from nld_train.run_folder.frozen import read_frozen_run
from nld_train.run_folder.paths import TRACKER, checkpoints_folder, step_folder
from tests.convert.conftest import export
from tests.vision_folder import image_tokens, random_images, save_ministral, stock_ministral

DRAFTER = DrafterConfig(rank=8, alpha=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drafter_run(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a drafter's run for `random_run`, with random numbers in A and B."""
    output = tmp_path_factory.mktemp("drafter") / "run"
    output.mkdir()
    run = replace(
        read_frozen_run(random_run), name="drafter", output=str(output), init=str(random_run), drafter=DRAFTER
    )
    (output / "run.json").write_text(run_to_json(run))
    (output / "model.json").write_text(json.dumps(asdict(run.model)))
    generator = torch.Generator().manual_seed(8)
    pieces = []
    for unit in adapter_mappings(run.model, DRAFTER.rank):
        numbers = 0.2 * torch.randn(unit.shape, generator=generator)
        size, offsets = (run.model.layers, *unit.shape), (unit.layer, 0, 0)
        pieces.append(
            TensorRange(unit.name, size, offsets, (1, *unit.shape), torch.float32, lambda numbers=numbers: numbers)
        )
    folder = step_folder(output, 0)
    write_torch_dist(folder, pieces, {})
    write_checkpoint_manifest(folder, checksum_files(folder, checkpoint_file_names(folder)))
    (checkpoints_folder(output) / TRACKER).write_text("0")
    return output


@pytest.fixture(scope="module")
def both(drafter_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nld convert export` of it: the model and the adapter, verified."""
    target = tmp_path_factory.mktemp("both") / "hf"
    export_checkpoint(
        ExportRequest(
            output=drafter_run,
            target=target,
            step=None,
            dtype="fp32",
            tokenizer=None,
            chat=False,
            shard_gb=None,
            verified=True,
            overwrite=False,
        )
    )
    return target


def test_the_folder_has_the_names_and_fields_of_the_published_format(both: Path, drafter_run: Path) -> None:
    said = json.loads((both / FOLDER / CONFIG).read_text())
    assert said == {
        "peft_type": "LORA",
        "target_modules": ["o_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "base_model_name_or_path": "run",
    }
    model, stored = read_frozen_run(drafter_run).model, load_file(both / FOLDER / WEIGHTS)
    assert len(stored) == 2 * model.layers
    for layer in range(model.layers):
        prefix = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj"
        assert stored[f"{prefix}.lora_A.weight"].shape == (8, model.heads * model.head_dim)
        assert stored[f"{prefix}.lora_B.weight"].shape == (model.hidden, 8)


def test_what_was_exported_is_the_base_model_beside_the_adapter(both: Path, exported: Path) -> None:
    assert (both / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_verification_finds_another_number_and_another_scale(both: Path, drafter_run: Path, copy_of) -> None:
    verify_folder(drafter_run, both, None, 1)
    folder = copy_of(both)
    stored = load_file(folder / FOLDER / WEIGHTS)
    name = sorted(stored)[3]
    stored[name][0, 0] += 1
    save_file(stored, folder / FOLDER / WEIGHTS)
    with pytest.raises(UserError, match=f"{name} differs"):
        verify_folder(drafter_run, folder, None, 1)
    write = json.loads((both / FOLDER / CONFIG).read_text()) | {"lora_alpha": 16}
    (folder / FOLDER / WEIGHTS).write_bytes((both / FOLDER / WEIGHTS).read_bytes())
    (folder / FOLDER / CONFIG).write_text(json.dumps(write))
    with pytest.raises(UserError, match="scale 2 are not the checkpoint's"):
        verify_folder(drafter_run, folder, None, 1)


def test_the_adapter_alone_goes_beside_an_export_or_into_a_new_folder(
    drafter_run: Path, both: Path, exported: Path, copy_of, tmp_path: Path
) -> None:
    export_adapter(drafter_run, tmp_path / "alone", None, "fp32", overwrite=False)
    assert [path.name for path in (tmp_path / "alone").iterdir()] == [FOLDER]
    beside = copy_of(exported)
    export_adapter(drafter_run, beside, None, "fp32", overwrite=False)
    for folder in (tmp_path / "alone", beside):
        assert (folder / FOLDER / WEIGHTS).read_bytes() == (both / FOLDER / WEIGHTS).read_bytes()
    with pytest.raises(UserError, match="exists already"):
        export_adapter(drafter_run, beside, None, "fp32", overwrite=False)


def test_an_adapter_beside_another_model_is_refused(drafter_run: Path, exported: Path, copy_of) -> None:
    folder = copy_of(exported)
    stored = load_file(folder / "model.safetensors")
    stored["encoder.norm.weight"][0] += 1
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="differs from the checkpoint's numbers"):
        export_adapter(drafter_run, folder, None, "fp32", overwrite=False)
    assert not (folder / FOLDER).exists()


def test_a_run_without_a_drafter_and_a_missing_step_are_refused(random_run: Path, drafter_run: Path) -> None:
    with pytest.raises(UserError, match="is no drafter's run"):
        open_adapter(random_run)
    with pytest.raises(UserError, match="--step 7"):
        open_adapter(drafter_run, 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"target_modules": ["q_proj"]}, "target_modules"),
        ({"r": 0.5}, "r=0.5; allowed: a whole number"),
        ({"task_type": "CAUSAL_LM"}, "task_type='CAUSAL_LM'"),
        ({"r": 0}, "r=0; allowed: a whole number above 0"),
        ({"lora_alpha": None}, "lora_alpha=None; allowed: a number"),
        ({"lora_dropout": "none"}, "lora_dropout='none'; allowed: a number"),
        ({"use_rslora": True}, "use_rslora=True; allowed: a plain LoRA"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern="),
    ],
)
def test_a_folder_of_another_kind_is_refused(both: Path, copy_of, change: dict, said: str) -> None:
    folder = copy_of(both)
    content = json.loads((folder / FOLDER / CONFIG).read_text()) | change
    (folder / FOLDER / CONFIG).write_text(json.dumps(content))
    model = load_model(folder, None, CPU)
    with pytest.raises(UserError, match=said):
        load_drafter_adapter(model, folder, folder)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_an_adapter_that_is_not_finite_is_refused_by_the_name_of_its_tensor(both: Path, copy_of, number) -> None:
    folder = copy_of(both)
    stored = load_file(folder / FOLDER / WEIGHTS)
    name = sorted(stored)[-1]
    stored[name].view(-1)[-1] = number
    save_file(stored, folder / FOLDER / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite numbers"):
        load_drafter_adapter(load_model(folder, None, CPU), folder, folder)


def test_half_the_precision_is_written_where_it_is_asked_for(drafter_run: Path, tmp_path: Path) -> None:
    write_adapter(open_adapter(drafter_run), tmp_path, torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}


def test_stock_peft_drafts_with_it_and_the_text_stays_that_of_greedy_ar(both: Path, monkeypatch) -> None:
    """On while drafting and at no other time; other modes do not know it."""
    prompts = [[5, 9, 31, 7], [11, 12, 13]]
    settings = DecodeConfig(max_new_tokens=12, block_length=4, eos_token_id=())
    base, model = load_model(both, None, CPU), load_model(both, None, CPU)
    load_drafter_adapter(model, both, both)
    states = []
    forward = type(model).forward

    def watched(self, *given, **named):
        drafting = named.get("use_causal_mask") is False and not named.get("use_cache")
        layers = [module for module in self.modules() if hasattr(module, "lora_A")]
        states.extend((drafting, not module.disable_adapters) for module in layers)
        return forward(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", watched)
    drafted = self_speculation.generate_self_speculation(model, prompts, settings)
    assert set(states) == {(True, True), (False, False)}
    states.clear()
    others = [decode(model, prompts, settings) for decode in (ar.generate_ar, diffusion.generate_diffusion)]
    assert not any(on for _, on in states)
    monkeypatch.undo()
    greedy, plain = ar.generate_ar(base, prompts, settings), diffusion.generate_diffusion(base, prompts, settings)
    assert [each.ids for each in drafted] == [each.ids for each in greedy] == [each.ids for each in others[0]]
    assert [each.ids for each in others[1]] == [each.ids for each in plain]


def test_drafts_are_those_of_the_adapter(both: Path) -> None:
    base, model = load_model(both, None, CPU), load_model(both, None, CPU)
    load_drafter_adapter(model, both, both)
    ids = torch.tensor([[5, 100, 100, 100]])
    with torch.no_grad(), decoding.adapters_switched(model, on=True):
        adapted = model(ids, use_causal_mask=False).logits
    plain = base(ids, use_causal_mask=False).logits
    assert (adapted - plain).abs().max() > 1e-2
    assert torch.equal(model(ids, use_causal_mask=False).logits, plain)


def test_the_commands(drafter_run: Path, both: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """`nld convert adapter`, then `nld generate --adapter` on it: the text of AR."""
    monkeypatch.setattr("sys.argv", ["nld", "convert", "adapter", str(drafter_run), "--to", str(tmp_path / "alone")])
    assert main() == 0
    texts = []
    for mode, adapter in (("ar", []), ("self-spec", ["--adapter", str(tmp_path / "alone")])):
        words = ["nld", "generate", "--model", str(both), *adapter, "--mode", mode, "--prompt", "def main"]
        monkeypatch.setattr("sys.argv", [*words, "--max-new-tokens", "12", "--block-length", "4"])
        capsys.readouterr()
        assert main() == 0
        texts.append(capsys.readouterr().out.split(f"[{mode}]")[0])
    assert texts[0] == texts[1]
    monkeypatch.setattr("sys.argv", [*words[:5], str(tmp_path), "--mode", "self-spec", "--prompt", "def main"])
    assert main() == 2


def test_an_older_adapter_and_another_base_are_read_only_where_they_are_asked_for(
    drafter_run: Path, random_run: Path, copy_of, tmp_path: Path
) -> None:
    """The base of a drafter is that of its init_step, also where its folder has gone on since."""
    run = copy_of(drafter_run)
    base = Path(shutil.copytree(random_run, tmp_path / "base"))
    for output, step in ((run, 5), (base, 7)):
        shutil.copytree(step_folder(output, 0), step_folder(output, step))
        (step_folder(output, step) / MANIFEST).unlink()
    frozen = replace(read_frozen_run(run), init=str(base))
    (run / "run.json").write_text(run_to_json(frozen))
    with pytest.raises(UserError, match="iter_0000005 has no manifest.json.*--step 0 for the newest whole one"):
        export_adapter(run, tmp_path / "out", None, "bf16", False)
    export_adapter(run, tmp_path / "out", 0, "bf16", False)
    with pytest.raises(UserError, match="iter_0000007 has no manifest.json.*init_step=0 for the newest whole one"):
        open_adapter_base(open_adapter(run, 0))
    (run / "run.json").write_text(run_to_json(replace(frozen, init_step=0)))
    assert open_adapter_base(open_adapter(run, 0)).step == 0


def test_on_a_model_with_vision_it_drafts_behind_images_and_leaves_the_tower_alone(both, prepared, tmp_path) -> None:
    tower = save_ministral(stock_ministral(), prepared / "tokenizer", tmp_path / "ministral")
    merge_vision(both, tower, tmp_path / "merged", "<SPECIAL_20>,<SPECIAL_21>,<SPECIAL_22>", overwrite=False)
    folder = export(tmp_path / "merged", tmp_path / "hf", dtype=torch.float32)
    model = load_model(folder, torch.float32, CPU)
    prompts = ImagePrompts([[*image_tokens(2, 2), 150, 160, 170]], random_images([(2, 2)]))
    settings = DecodeConfig(max_new_tokens=12, block_length=4, eos_token_id=())
    expected = ar.generate_ar(model, prompts, settings)[0].ids
    before = self_speculation.generate_self_speculation(model, prompts, settings)[0]
    load_drafter_adapter(model, folder, both)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == model.config.num_hidden_layers and not any("vision" in name for name in adapted)
    found = self_speculation.generate_self_speculation(model, prompts, settings)[0]
    assert before.ids == found.ids == expected

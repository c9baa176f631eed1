"""The forward equals the training-time dual stream; the decoding methods keep the contract."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu

from nld_train import hf
from nld_train.attention.reference import attend_reference
from nld_train.config import ModelConfig
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.dual_stream.row_layout import RowLayout, rotary_positions
from nld_train.hf.configuration_nemotron_labs_diffusion import PUBLISHED_ROPE, NemotronLabsDiffusionConfig
from nld_train.hf.modeling_ministral import inverse_frequencies
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionModel
from nld_train.model_sizes import NLD_3B, NLD_8B, NLD_14B

TRAVELLING = sorted(Path(hf.__path__[0]).glob("[a-z]*.py"))  # all but __init__.py
BLOCK, LENGTH = 8, 40  # the query scale is at work from position 16 on


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, heads, S, D] as complex numbers (first half, second half), turned by angles [S, D / 2]."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def dual_stream_logits(model: NemotronLabsDiffusionModel, noisy: Tensor, clean: Tensor) -> Tensor:
    """Training's forward with the model's weights: [noisy | clean] through the reference attention. [B, 2L, V]."""
    layout, config, weights = RowLayout(LENGTH, BLOCK, dual=True), model.config, model.state_dict()
    place = rotary_positions(layout).double()
    # Angles are rounded to float32 in training too.
    angles = (
        place.float()[:, None] * inverse_frequencies(config.rope_parameters, config.head_dim, place.device)
    ).double()
    scale = (1 + 0.1 * torch.log1p(torch.floor(place / 16)))[:, None]
    x = weights["encoder.embed_tokens.weight"][torch.cat([noisy, clean], 1)]
    for number in range(config.num_hidden_layers):
        layer = {name.split(f"layers.{number}.")[1]: w for name, w in weights.items() if f"layers.{number}." in name}
        h = normed(x, layer["input_layernorm.weight"])
        query, key, value = (
            (h @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
            for name in "qkv"
        )
        seen = attend_reference(
            rotated(query, angles) * scale, rotated(key, angles), value, MaskSpec(layout), config.head_dim**-0.5
        )
        x = x + seen.transpose(1, 2).flatten(2) @ layer["self_attn.o_proj.weight"].T
        h = normed(x, layer["post_attention_layernorm.weight"])
        gate = silu(h @ layer["mlp.gate_proj.weight"].T) * (h @ layer["mlp.up_proj.weight"].T)
        x = x + gate @ layer["mlp.down_proj.weight"].T
    return normed(x, weights["encoder.norm.weight"]) @ weights["diffusion_head.weight"].T


@torch.no_grad()
def test_a_noisy_block_over_the_cached_clean_past_has_the_logits_that_training_saw(model, random_ids):
    clean = random_ids(2, LENGTH)
    noisy = torch.where(torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6, 3, clean)
    trained = dual_stream_logits(model, noisy, clean)
    cache = model(clean[:, :0], use_cache=True, use_causal_mask=True).past_key_values
    for start in range(0, LENGTH, BLOCK):
        block = slice(start, start + BLOCK)
        seen = model(noisy[:, block], past_key_values=cache, use_cache=False, use_causal_mask=False).logits
        torch.testing.assert_close(seen, trained[:, block], rtol=0, atol=1e-9)
        seen = model(clean[:, block], past_key_values=cache, use_cache=True, use_causal_mask=True).logits
        torch.testing.assert_close(seen, trained[:, LENGTH:][:, block], rtol=0, atol=1e-9)
    assert cache.lengths == [LENGTH, LENGTH]


@torch.no_grad()
def test_the_query_scale_shows_beyond_the_original_context_and_only_there(tiny_model, tiny_config, random_ids):
    rope = tiny_config().rope_parameters
    flat, ids = tiny_model(rope_parameters=rope | {"llama_4_scaling_beta": 0.0}), random_ids(1, LENGTH)
    gap = (tiny_model()(ids, use_causal_mask=True).logits - flat(ids, use_causal_mask=True).logits).abs().amax(-1)[0]
    assert (gap[:16] == 0).all() and (gap[16:] > 1e-6).all()


@torch.no_grad()
def test_causal_mode_does_not_see_later_tokens_and_diffusion_mode_does(model, random_ids):
    ids = random_ids(1, 10)
    other = ids.clone()
    other[0, 7] = 2
    for causal, changed in ((True, {7, 8, 9}), (False, set(range(10)))):
        moved = (model(ids, use_causal_mask=causal).logits != model(other, use_causal_mask=causal).logits).any(-1)[0]
        assert set(moved.nonzero().flatten().tolist()) == changed


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_in_either_mode(model, random_ids, causal, side):
    ids = random_ids(1, 9)
    pad = (3, 0) if side == "left" else (0, 3)
    padded = torch.nn.functional.pad(ids, pad, value=7)
    mask = torch.nn.functional.pad(torch.ones_like(ids), pad)
    for cached in (False, True):
        output = model(padded, attention_mask=mask, use_causal_mask=causal, use_cache=cached)
        own = output.logits[:, 3:] if side == "left" else output.logits[:, :9]
        torch.testing.assert_close(own, model(ids, use_causal_mask=causal).logits, rtol=0, atol=1e-9)
    assert output.past_key_values.lengths == [9]


@torch.no_grad()
def test_the_paradigm_decides_where_the_caller_does_not(tiny_model, random_ids):
    ids = random_ids(1, 6)
    for paradigm, causal in (("bidirectional", False), ("block_diff", False), ("autoregressive", True)):
        model = tiny_model(dlm_paradigm=paradigm)
        assert torch.equal(model(ids).logits, model(ids, use_causal_mask=causal).logits)
        assert torch.equal(model(ids, use_causal_mask=True).logits, tiny_model()(ids, use_causal_mask=True).logits)


@pytest.mark.parametrize(
    ("size", "rope_theta", "tensors", "parameters"),
    [(NLD_3B, 1e6, 237, 3_831_659_520), (NLD_8B, 1e6, 309, 8_489_553_920), (NLD_14B, 1e9, 363, 13_506_073_600)],
)
def test_the_published_sizes_have_the_published_tensors(size: ModelConfig, rope_theta, tensors, parameters):
    config = NemotronLabsDiffusionConfig(
        hidden_size=size.hidden, intermediate_size=size.ffn, num_hidden_layers=size.layers,
        rope_parameters=PUBLISHED_ROPE | {"rope_theta": rope_theta},
    )  # fmt: skip
    with torch.device("meta"):
        state = NemotronLabsDiffusionModel(config).state_dict()
    assert len(state) == tensors == 9 * size.layers + 3
    assert sum(tensor.numel() for tensor in state.values()) == parameters


def test_tensor_names_are_those_of_the_contract(model):
    of_layer = ["input_layernorm", "post_attention_layernorm"]
    of_layer += [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    names = {f"encoder.layers.{layer}.{name}.weight" for layer in range(2) for name in of_layer}
    assert set(model.state_dict()) == names | {
        "encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"
    }  # fmt: skip


def test_the_travelling_files_import_torch_transformers_what_it_needs_and_each_other_only():
    for file in TRAVELLING:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 or isinstance(node, ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                roots = {name.split(".")[0] for name in names}
                assert roots <= sys.stdlib_module_names | {"torch", "transformers", "safetensors"}, (
                    f"{file.name}: {roots}"
                )


LOADED_ELSEWHERE = """
import sys, torch
from transformers import AutoConfig, AutoModel
folder, prompt = sys.argv[1], torch.tensor([[5, 6, 7], [0, 8, 9]])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__name__ == "NemotronLabsDiffusionModel" and model.dtype == torch.float32, model.dtype
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).mask_token_id == 3
mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
ar, nfe = model.ar_generate(prompt, max_new_tokens=8, attention_mask=mask)
spec, _ = model.linear_spec_generate(prompt, max_new_tokens=8, block_length=4, attention_mask=mask)
diffusion, _ = model.generate(prompt, 8, 4, threshold=0.9, attention_mask=mask)
assert torch.equal(ar, spec) and nfe == 8 and diffusion.shape == (2, 11)
strangers = [name for name in sys.modules if name.split(".")[0] in ("nld_train", "megatron")]
assert not strangers, strangers
print(ar.tolist())
"""


@pytest.mark.slow
def test_an_export_folder_loads_without_this_package(tiny_model, tmp_path):
    model, folder = tiny_model(dtype=torch.float32), tmp_path / "export"
    folder.mkdir()
    for file in TRAVELLING:
        shutil.copy(file, folder)
    names = {
        "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
        "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
        "AutoModelForCausalLM": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionForCausalLM",
    }
    rope = model.config.rope_parameters
    content = model.config.to_dict() | {
        "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion", "auto_map": names,
        "torch_dtype": "float32", "rope_scaling": rope,
    }  # fmt: skip
    content.pop("dtype")
    (folder / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    alone = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", LOADED_ELSEWHERE, folder],
        cwd=tmp_path, env=os.environ | alone, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    prompt, mask = torch.tensor([[5, 6, 7], [0, 8, 9]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    assert json.loads(ran.stdout) == model.ar_generate(prompt, 8, attention_mask=mask)[0].tolist()


def test_a_model_survives_its_own_save_pretrained(tiny_model, tmp_path, random_ids):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = NemotronLabsDiffusionModel.from_pretrained(tmp_path)
    ids = random_ids(1, 20)
    assert torch.equal(again(ids).logits, model(ids).logits)


def with_drafter(model: NemotronLabsDiffusionModel) -> NemotronLabsDiffusionModel:
    """The model with LoRA layers that change what it says."""
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["o_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config).model


def test_the_drafter_is_on_while_drafting_and_off_otherwise(tiny_model, random_ids):
    plain, prompt = tiny_model(), random_ids(2, 6)
    model = with_drafter(tiny_model())
    on: list[bool] = []
    model.encoder.layers[0].self_attn.o_proj.register_forward_hook(
        lambda layer, *_: on.append(not layer.disable_adapters)
    )
    ids, nfe = model.linear_spec_generate(prompt, max_new_tokens=12, block_length=4)
    assert torch.equal(ids, plain.ar_generate(prompt, max_new_tokens=12)[0])
    assert on == [False] + [True, False] * ((nfe - 1) // 2) and nfe > 1
    with torch.no_grad():
        gap = model(prompt, use_causal_mask=True).logits - plain(prompt, use_causal_mask=True).logits
    assert gap.abs().max() > 0.1, "the adapter changes nothing"


@pytest.mark.parametrize("drafter", [True, False], ids=["a drafter", "a fine-tuned model"])
def test_other_decoding_is_that_of_the_base_model_for_a_drafter_and_of_the_adapter_for_a_fine_tuned_model(
    tiny_model, random_ids, drafter
):
    """Through the wrapped model, as PEFT's users call it."""
    settings = {"target_modules": ["o_proj"]} if drafter else {"task_type": "CAUSAL_LM", "target_modules": ["o_proj"]}
    config = peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **settings)
    wrapped, plain, prompt = peft.get_peft_model(tiny_model(), config), tiny_model(), random_ids(2, 6)
    for call in (
        lambda model: model.ar_generate(prompt, max_new_tokens=12)[0],
        lambda model: model.generate(prompt_ids=prompt, max_new_tokens=12, block_length=4)[0],
        lambda model: model.generate(input_ids=prompt, max_new_tokens=12, do_sample=False),
    ):
        assert torch.equal(call(wrapped), call(plain)) == drafter
    drafted = wrapped.linear_spec_generate(prompt, max_new_tokens=12, block_length=4)[0]
    assert torch.equal(drafted, wrapped.ar_generate(prompt, max_new_tokens=12)[0])


class Interrupted(Exception):
    pass


def interrupt(row: int, tokens: list[int]) -> None:
    raise Interrupted


CALLS = {
    "ar": lambda model, ids, streamer: model.ar_generate(ids, max_new_tokens=8, streamer=streamer),
    "diffusion": lambda model, ids, streamer: model.generate(ids, 8, 4, streamer=streamer),
    "linear": lambda model, ids, streamer: model.linear_spec_generate(ids, 8, 4, streamer=streamer),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("streamer", [None, interrupt], ids=["finished", "interrupted"])
@pytest.mark.parametrize("switched_off", [True, False])
def test_flags_and_adapters_are_put_back_after_every_call(tiny_model, random_ids, call, streamer, switched_off):
    model = with_drafter(tiny_model())
    model.train()
    model.encoder.layers[1].eval()
    lora = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer in lora:
        layer.enable_adapters(not switched_off)
    next(model.parameters()).requires_grad_(True)

    def state() -> tuple:
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [layer.disable_adapters for layer in lora],
            model.config.to_dict(),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    if streamer is None:
        call(model, random_ids(1, 5), None)
    else:
        with pytest.raises(Interrupted):
            call(model, random_ids(1, 5), streamer)
    assert state() == before

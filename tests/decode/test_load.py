"""Folders that cannot be decoded from: one clear line each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nld_train.decode.load import draw_text_only, load_model, load_text_tokenizer
from nld_train.errors import UserError

CPU = torch.device("cpu")


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def cut_in_half(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HEAD, NORM = "diffusion_head.weight", "encoder.norm.weight"
BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds no object"),
    "architecture": (lambda folder: change_config(folder, architectures=["LlamaForCausalLM"]), "LlamaForCausalLM"),
    "no architecture": (lambda folder: change_config(folder, architectures=None), "holds None"),
    "paradigm": (lambda folder: change_config(folder, dlm_paradigm="sbd_block_diff"), "dlm_paradigm='sbd_block_diff'"),
    "mask id": (lambda folder: change_config(folder, mask_token_id=400), "mask_token_id=400; allowed: ids below"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "truncated": (cut_in_half, "model.safetensors has .* bytes of"),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "model.safetensors is shorter than its header",
    ),
    "missing": (lambda folder: change_weights(folder, lambda tensors: tensors.pop(HEAD)), f"lacks {HEAD}"),
    "unknown": (
        lambda folder: change_weights(folder, lambda all: all.update(extra=torch.ones(1))),
        "nothing maps: extra",
    ),
    "shape": (
        lambda folder: change_weights(folder, lambda all: all.update({NORM: torch.ones(5)})),
        f"{NORM} has the shape .5.; allowed: .32.",
    ),
    "not a number": (
        lambda folder: change_weights(folder, lambda tensors: tensors[HEAD][0].fill_(torch.nan)),
        f"{HEAD} holds NaN or infinite numbers",
    ),
    "rope no object": (lambda folder: change_config(folder, rope_parameters="yarn"), "rope_parameters='yarn'"),
    "positions": (
        lambda folder: change_config(folder, max_position_embeddings="many"),
        "max_position_embeddings='many'",
    ),
    "a type of transformers": (lambda folder: change_config(folder, id2label=3), "config.json: "),
    "more layers": (lambda folder: change_config(folder, num_hidden_layers=3), "lacks .* and 6 more"),
}


@pytest.mark.parametrize(("break_it", "named"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_in_one_line(folder, break_it, named):
    break_it(folder)
    with pytest.raises(UserError, match=named) as caught:
        load_model(folder, None, CPU)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_another_vocabulary_is_refused(folder):
    assert load_text_tokenizer(folder, 400).vocab_size == 400
    assert load_text_tokenizer(folder, 512).vocab_size == 400  # a padded vocabulary
    with pytest.raises(UserError, match="vocabulary of 400; allowed: at most the model's 384"):
        load_text_tokenizer(folder, 384)


def test_ids_without_text_are_never_drawn(folder):
    """Those behind the tokenizer's last id, and those of a gap in it."""
    model = load_model(folder, None, CPU)
    ids = torch.arange(5)[None]
    before = model(ids, use_causal_mask=True).logits
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    gone = [token for token, number in vocabulary.items() if number >= 380 or number == 370]
    kept = {token: number for token, number in vocabulary.items() if token not in gone}
    merges = [merge for merge in content["model"]["merges"] if {*merge, "".join(merge)} <= kept.keys()]
    content["model"] |= {"vocab": kept, "merges": merges}
    path.write_text(json.dumps(content))
    tokenizer = load_text_tokenizer(folder, 400)
    draw_text_only(model, tokenizer)
    after = model(ids, use_causal_mask=True).logits
    empty = torch.zeros(400, dtype=torch.bool)
    empty[380:], empty[370] = True, True
    assert torch.equal(after[..., ~empty], before[..., ~empty]) and (after[..., empty] == -torch.inf).all()


def test_the_dtype_is_that_of_the_configuration_unless_another_is_given(folder):
    assert load_model(folder, None, CPU).dtype == torch.float32
    assert load_model(folder, torch.bfloat16, CPU).dtype == torch.bfloat16
    change_config(folder, dtype="bfloat16")
    assert load_model(folder, None, CPU).dtype == torch.bfloat16


def test_weights_in_several_files_are_found_through_their_index(folder):
    whole = load_model(folder, None, CPU).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    again = load_model(folder, None, CPU).state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"no {file}"):
        load_model(folder, None, CPU)

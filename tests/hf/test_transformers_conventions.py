"""What programs written for any model of transformers do with this one."""

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nld_train.hf.configuration_nemotron_labs_diffusion import InputError
from nld_train.hf.modeling_nemotron_labs_diffusion import NemotronLabsDiffusionForCausalLM

NEW = 12


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("lengths", [(6, 6), (9, 4, 1)], ids=["even", "left-padded"])
def test_transformers_own_generate_is_greedy_ar(model, random_ids, lengths):
    rows = [random_ids(1, length, seed=length)[0].tolist() for length in lengths]
    given = padded(rows)
    made = model.generate(**given, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(made, model.ar_generate(given["input_ids"], NEW, attention_mask=given["attention_mask"])[0])
    uncached = model.generate(**given, max_new_tokens=NEW, do_sample=False, use_cache=False)
    assert torch.equal(uncached, made)


def test_transformers_own_generate_stops_samples_searches_and_streams(model, random_ids):
    ids = random_ids(1, 5)
    greedy = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, 5:].tolist()
    eos = greedy[4]
    made = model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=0)
    assert made[0, 5:].tolist() == greedy[: greedy.index(eos) + 1]
    torch.manual_seed(0)
    sampled = model.generate(ids, max_new_tokens=NEW, do_sample=True, num_return_sequences=4, top_k=0)
    assert len({tuple(row) for row in sampled.tolist()}) > 1
    assert model.generate(ids, max_new_tokens=NEW, num_beams=3, do_sample=False).shape == (1, 5 + NEW)
    heard = []

    class Streamer:
        def put(self, tokens):
            heard.extend(tokens.flatten().tolist())

        def end(self):
            heard.append("end")

    model.generate(ids, max_new_tokens=NEW, do_sample=False, streamer=Streamer())
    assert heard == [*ids[0].tolist(), *greedy, "end"]


def test_the_familys_generate_stands_beside_it(model, random_ids):
    ids = random_ids(1, 5)
    tokens, forwards = model.generate(ids, 8, 4, 0.9)
    named, again = model.generate(prompt_ids=ids, max_new_tokens=8, block_length=4, threshold=0.9)
    assert torch.equal(tokens, named) and forwards == again
    with pytest.raises(
        InputError, match=r"generate\(prompt_ids, threshold\) without block_length.*add block_length=32"
    ):
        model.generate(prompt_ids=ids, max_new_tokens=8, threshold=0.9)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_a_cache_of_transformers_gives_the_logits_of_none(model, random_ids, causal):
    ids = random_ids(2, 20)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for given in (None, mask):
        cache = DynamicCache()
        first = None if given is None else given[:, :12]
        model(ids[:, :12], attention_mask=first, past_key_values=cache, use_cache=True, use_causal_mask=True)
        seen = model(ids[:, 12:], attention_mask=given, past_key_values=cache, use_causal_mask=causal).logits
        if causal:
            expected = model(ids, attention_mask=given, use_causal_mask=True).logits[:, 12:]
        else:
            own = model(ids[:, :12], attention_mask=first, use_cache=True, use_causal_mask=True).past_key_values
            expected = model(ids[:, 12:], past_key_values=own, use_cache=False, use_causal_mask=False).logits
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-9)
        assert cache.get_seq_length() == 20


@torch.no_grad()
def test_hidden_states_are_the_embedding_every_layer_and_the_norm(model, random_ids):
    ids = random_ids(1, 7)
    output = model(ids, output_hidden_states=True, cache_position=torch.arange(7))
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.diffusion_head(output.hidden_states[-1]), output.logits)
    assert model(ids).hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_eager_attention_is_sdpa_and_shows_its_weights(tiny_model, random_ids, causal):
    model, ids = tiny_model(), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    expected = [model(ids, attention_mask=given, use_causal_mask=causal).logits for given in (None, mask)]
    model.set_attn_implementation("eager")
    for given, logits in zip((None, mask), expected, strict=True):
        output = model(ids, attention_mask=given, use_causal_mask=causal, output_attentions=True)
        torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-9)
        assert [weights.shape for weights in output.attentions] == [(2, 4, 9, 9)] * 2
        assert (output.attentions[0].sum(-1) - 1).abs().max() < 1e-9
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="output_attentions with the attention 'sdpa'; allowed: 'eager'"):
        model(ids, output_attentions=True)


@torch.no_grad()
def test_attention_goes_through_the_registered_function(tiny_model, random_ids):
    """Such as vLLM's, which is given what the caller hands on."""
    model, ids, seen = tiny_model(), random_ids(1, 6), []

    def counted(module, query, key, value, attention_mask, *, ours, **named):
        seen.append((module.layer_idx, ours))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **named)

    expected = model(ids).logits
    ALL_ATTENTION_FUNCTIONS.register("counted", counted)
    model.set_attn_implementation("counted")
    assert torch.equal(model(ids, ours="handed on").logits, expected)
    assert seen == [(0, "handed on"), (1, "handed on")]
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match=r"forward\(labls\); allowed: arguments of forward"):
        model(ids, labls=ids)


@torch.no_grad()
def test_a_decoder_layer_is_called_as_transformers_calls_its_own(model, random_ids):
    """With what is left out filled in: causal attention at positions 0 to n - 1."""
    ids = random_ids(2, 8)
    states = model(ids, use_causal_mask=True, output_hidden_states=True).hidden_states
    layer = model.encoder.layers[0]
    mask = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(layer(states[0]), states[1], rtol=0, atol=1e-9)
    for given in (mask, torch.zeros(1, 1, 8, 8, dtype=torch.float64).masked_fill(~mask, -torch.inf)):
        made = layer(states[0], attention_mask=given, position_ids=torch.arange(8)[None], use_cache=False)
        torch.testing.assert_close(made, states[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {"dlm_loss_weight": 0.3}], ids=["causal", "joint"])
def test_gradient_checkpointing_computes_layers_again_and_the_same_gradients(tiny_model, random_ids, settings):
    ids = random_ids(2, 10)
    runs = []
    for checkpointing in (False, True):
        model = tiny_model(**settings).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls = []
        model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        model(ids, labels=ids, use_cache=True).loss.backward()
        runs.append((len(calls), [parameter.grad for parameter in model.parameters()]))
    assert [count for count, _ in runs] == [1, 2]
    assert all(torch.equal(*pair) for pair in zip(runs[0][1], runs[1][1], strict=True))


def test_a_trainer_may_compute_the_causal_loss_from_the_trunk_and_the_head(tiny_model, random_ids):
    """As TRL's fused head does; and it does not drop the joint loss without a word."""
    model, ids = tiny_model().train(), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    expected = model(ids, attention_mask=mask, use_causal_mask=True).logits
    assert torch.equal(model.get_output_embeddings()(hidden), expected)
    model.config.dlm_loss_weight = 0.3
    with pytest.raises(InputError, match="dlm_loss_weight=0.3 with a trainer that reads hidden states, not the loss"):
        model.base_model(input_ids=ids)


def test_as_a_causal_model_it_is_causal_where_nobody_says(tiny_model, random_ids, tmp_path):
    model, ids = tiny_model(dtype=torch.float32), random_ids(1, 8)
    model.save_pretrained(tmp_path / "first")
    causal = NemotronLabsDiffusionForCausalLM.from_pretrained(tmp_path / "first").eval()
    with torch.no_grad():
        assert torch.equal(causal(ids).logits, model(ids, use_causal_mask=True).logits)
        assert torch.equal(causal(ids, use_causal_mask=False).logits, model(ids).logits)
        assert not torch.equal(causal(ids).logits, model(ids).logits)
    causal.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert '"NemotronLabsDiffusionModel"' in (tmp_path / "again" / "config.json").read_text()


def test_an_older_transformers_is_one_line(monkeypatch):
    import importlib

    import transformers

    import nld_train.hf.configuration_nemotron_labs_diffusion as module

    monkeypatch.setattr(transformers, "__version__", "4.57.1")
    with pytest.raises(ImportError, match=r"^transformers 4.57.1; allowed: 5.0 and newer; do: pip install"):
        importlib.reload(module)

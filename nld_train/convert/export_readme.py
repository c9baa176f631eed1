"""The README.md of an export: how to use it, with snippets that a test runs."""

from nld_train.convert.config_json import SpecialTokenIds
from nld_train.convert.source import CheckpointSource
from nld_train.convert.weight_table import parameter_count, tensor_count

TEXT = """\
# {name}

Tri-mode language model of {parameters:,} parameters ({tensors} tensors): it decodes left to right, by denoising blocks
of {block} tokens in parallel, and by self-speculation, where diffusion drafts and AR verifies. Exported by nld-train
from step {step}. Mask id {mask}, context {context:,} tokens.

## transformers

Needs `torch` and `transformers` 5 or newer. The Python files here are what `trust_remote_code=True` runs.

```python
import torch
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
prompt = tokenizer("def main():", add_special_tokens=False, return_tensors="pt").input_ids

ids, forwards = model.ar_generate(prompt, max_new_tokens={new})
print("left to right    ", forwards, "forwards", tokenizer.decode(ids[0]))
ids, forwards = model.generate(prompt, max_new_tokens={new}, block_length={block}, threshold=0.9)
print("block diffusion  ", forwards, "forwards", tokenizer.decode(ids[0]))
ids, forwards = model.linear_spec_generate(prompt, max_new_tokens={new}, block_length={block})
print("self-speculation ", forwards, "forwards", tokenizer.decode(ids[0]))
```

`generate` counts denoising forwards and one causal forward per finished block that another one follows, not the
prefill; the other two count the prefill.

## nld-train

```sh
nld generate --model . --mode self-spec --prompt "def main():"
nld convert import . --to out/imported      # a Megatron checkpoint; start a recipe from it with init=out/imported
```

## Served (not run here)

None of these commands was run when this folder was written; they follow what the programs document.

```sh
# SGLang, with the pull request of the family (25803); it takes block 32 and mask 100 from a table of its own
python -m sglang.launch_server --model-path . --trust-remote-code --dllm-algorithm LinearSpec
# vLLM: left to right alone, through its transformers backend
vllm serve . --trust-remote-code --model-impl transformers
```

## PEFT

Where the folder has `linear_spec_lora/`, a drafter: the adapter is on while drafting, off in prefill and verification.

```python
from peft import PeftModel
model = PeftModel.from_pretrained(model, folder, subfolder="linear_spec_lora").model
model.linear_spec_generate(prompt, max_new_tokens={new}, block_length={block})
```
"""


def export_readme(source: CheckpointSource, traits: SpecialTokenIds) -> str:
    """The text for one checkpoint."""
    return TEXT.format(
        name=source.output.name,
        parameters=parameter_count(source.model),
        tensors=tensor_count(source.model),
        block=traits.block_size,
        new=2 * traits.block_size,
        step=source.step,
        mask=traits.mask_token_id,
        context=source.model.rope.max_position,
    )

"""The README.md of an export: how to use it. Tests run every command and every snippet that stands there."""

from nld_train.convert.config_json import SpecialTokenIds
from nld_train.convert.sglang import SGLANG_FILE, sglang_differences
from nld_train.convert.source import CheckpointSource
from nld_train.convert.weight_table import parameter_count, tensor_count

HEAD = """\
# {name}

{what} It has {parameters:,} parameters ({tensors} tensors) and reads {context:,} tokens. nld-train exported it from
step {step}.
"""

WHAT = (
    "This tri-mode language model decodes left to right, by denoising blocks of {block} tokens in parallel, and by "
    "self-speculation, where diffusion drafts and left-to-right reading verifies. Its mask has the id {mask}."
)

TEXT_WHAT = (
    "These are the weights of a tri-mode language model as the class Ministral3ForCausalLM, which decodes left to "
    "right alone."
)

VLM_WHAT = (
    "This vision-language model reads images and text, and writes text from left to right, by denoising blocks of "
    "{block} tokens in parallel, and by self-speculation, where diffusion drafts and left-to-right reading verifies. "
    "Its mask has the id {mask}."
)

BODY = """
## transformers

The model needs `torch` and `transformers` 5 or newer. `trust_remote_code=True` runs the Python files of this folder.

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

`generate` with a `block_length` counts denoising forwards and one causal forward per finished block that another one
follows, not the prefill; the other two count the prefill. Where the folder has `sampler/`, it holds a trained sampler:
with `sampler=True` its judgement of a token, not the token's probability, is compared with `threshold`.

Programs that know causal language models alone load the same weights with `AutoModelForCausalLM`. There `generate` is
transformers' own, `forward` attends causally, and `labels` give the causal loss. With a number as `dlm_loss_weight`,
`labels` give the causal loss plus that number times the diffusion loss.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
inputs = tokenizer("def main():", add_special_tokens=False, return_tensors="pt")
print("causal model     ", tokenizer.decode(model.generate(**inputs, max_new_tokens={new}, do_sample=False)[0]))
model.config.dlm_loss_weight = 0.3
print("joint loss       ", model(**inputs, labels=inputs.input_ids).loss.item())
```

## nld-train

```sh
nld generate --model . --mode self-spec --prompt "def main():" --max-new-tokens {new}
nld convert import . --to imported      # a Megatron checkpoint; a recipe starts from it with init=imported
```

## PEFT

Where the folder has `linear_spec_lora/`, it holds a drafter. Its adapter is on while drafting, and off in prefill,
verification and every other mode.

```python
from peft import PeftModel
model = PeftModel.from_pretrained(model, folder, subfolder="linear_spec_lora").model
model.linear_spec_generate(prompt, max_new_tokens={new}, block_length={block})
```

## Servers

vLLM, and other programs that decode left to right alone, load these weights under the names of Ministral3ForCausalLM:
`nld convert export` writes such a folder with `--as ministral3`, and its README has a snippet for vLLM.

SGLang knows the family by its pull request 25803, which was open in November 2026 and offers block diffusion alone:
linear self-speculation and adapters are announced there for later. It needs a GPU and was not run with this folder.
`{sglang}` is the file for its option `--dllm-algorithm-config`. {differences}
"""

VLM_BODY = """
## transformers

The model needs `torch`, `torchvision`, `pillow` and `transformers` 5 or newer. `trust_remote_code=True` runs the Python
files of this folder; the vision tower, its projector and the processor are transformers' own.

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
image = Image.new("RGB", (320, 240), "red")  # or Image.open("photo.png")
content = [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]
text = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
prompt, images = inputs.input_ids, {{name: inputs[name] for name in ("pixel_values", "image_sizes")}}

ids, forwards = model.ar_generate(prompt, max_new_tokens={new}, **images)
print("left to right    ", forwards, "forwards", processor.decode(ids[0, prompt.shape[1] :]))
ids, forwards = model.generate(prompt, max_new_tokens={new}, block_length={block}, threshold=0.9, **images)
print("block diffusion  ", forwards, "forwards", processor.decode(ids[0, prompt.shape[1] :]))
ids, forwards = model.linear_spec_generate(prompt, max_new_tokens={new}, block_length={block}, **images)
print("self-speculation ", forwards, "forwards", processor.decode(ids[0, prompt.shape[1] :]))
```

Programs that know image-text models alone load the same weights with `AutoModelForImageTextToText`. There `generate` is
transformers' own, `forward` attends causally, and `labels` give the causal loss.

```python
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16).eval()
content = [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]
text = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
image = Image.new("RGB", (320, 240), "red")
inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
made = model.generate(**inputs, max_new_tokens={new}, do_sample=False)
print("image-text model ", processor.decode(made[0, inputs.input_ids.shape[1] :]))
```

## nld-train

```sh
nld generate --model . --mode self-spec --chat --image photo.png --prompt "What is this?" --max-new-tokens {new}
nld convert import . --to imported      # a Megatron checkpoint; a recipe starts from it with init=imported
nld convert export imported --to text --text-only      # the language model alone
```
"""

TEXT_BODY = """
## transformers

The class is part of `transformers` 5, so that no code of this folder is run.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
inputs = tokenizer("def main():", add_special_tokens=False, return_tensors="pt")
print("causal model     ", tokenizer.decode(model.generate(**inputs, max_new_tokens={new}, do_sample=False)[0]))
```

## vLLM

```python
from vllm import LLM, SamplingParams

llm = LLM(".", max_model_len={length})
(made,) = llm.generate(["def main():"], SamplingParams(max_tokens={new}, temperature=0))
print("vLLM             ", made.outputs[0].text)
```

## nld-train

```sh
nld convert import . --to imported      # a Megatron checkpoint; a recipe starts from it with init=imported
```
"""


def vlm_readme(source: CheckpointSource, traits: SpecialTokenIds) -> str:
    """The text of an export with a vision tower."""
    return _filled(HEAD.replace("{what}", VLM_WHAT) + VLM_BODY, source, traits, "")


def export_readme(source: CheckpointSource, traits: SpecialTokenIds) -> str:
    """The text of an export in the published format."""
    differences = " ".join(f"SGLang: {sentence}." for sentence in sglang_differences(traits))
    return _filled(HEAD.replace("{what}", WHAT) + BODY, source, traits, differences)


def text_readme(source: CheckpointSource, traits: SpecialTokenIds) -> str:
    """The text of an export as Ministral3ForCausalLM."""
    return _filled(HEAD.replace("{what}", TEXT_WHAT) + TEXT_BODY, source, traits, "")


def _filled(text: str, source: CheckpointSource, traits: SpecialTokenIds, differences: str) -> str:
    context = source.model.rope.max_position
    filled = text.format(
        name=source.output.name,
        parameters=parameter_count(source.model, source.vision),
        tensors=tensor_count(source.model, source.vision),
        block=traits.block_size,
        new=min(2 * traits.block_size, context // 2),
        step=source.step,
        mask=traits.mask_token_id,
        context=context,
        length=min(context, 8192),
        sglang=SGLANG_FILE,
        differences=differences,
    )
    return "\n".join(line.rstrip() for line in filled.splitlines()) + "\n"

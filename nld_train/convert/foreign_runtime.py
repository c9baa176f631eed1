"""Run by another Python: a runtime loads a folder, decodes prompts greedily, and says what it made of them.

    python foreign_runtime.py RUNTIME FOLDER REQUEST ANSWER

REQUEST is a JSON file with `prompts`, a list of lists of token ids, and `new`, how many tokens to add to each. ANSWER
is a JSON file that is written: the runtime's `version`, and for every prompt `tokens` and the natural logarithms of
their probabilities, `logprobs`. This file imports nothing of nld_train, so that any environment can run it.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Prompts = list[list[int]]


def score_greedy(logits_of: Callable[[list[int]], Any], prompt: list[int], new: int) -> Answer:
    """Decode greedily with a function from ids to logits [n, V] (a torch tensor), without a cache."""
    ids, logprobs = list(prompt), []
    for _ in range(new):
        last = logits_of(ids)[-1].double().log_softmax(-1)
        ids.append(int(last.argmax()))
        logprobs.append(float(last[ids[-1]]))
    return {"tokens": ids[len(prompt) :], "logprobs": logprobs}


def run_transformers(folder: str, prompts: Prompts, new: int) -> tuple[str, list[Answer]]:
    """AutoModelForCausalLM with transformers' own generate and its cache, in float32."""
    import torch
    import transformers

    remote = any(Path(folder).glob("modeling_*.py"))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=remote, dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        made = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False
        )
        with torch.no_grad():
            logprobs = model(made).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        tokens = made[0, len(prompt) :]
        answers.append({"tokens": tokens.tolist(), "logprobs": logprobs.gather(-1, tokens[:, None])[:, 0].tolist()})
    return transformers.__version__, answers


def run_peft(folder: str, prompts: Prompts, new: int) -> tuple[str, list[Answer]]:
    """The drafter's adapter by PEFT: drafts, read as a causal model that has the adapter on."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(base, folder, subfolder="linear_spec_lora")
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            answers.append(score_greedy(lambda ids: wrapped(torch.tensor([ids])).logits[0], prompt, new))
            drafted, _ = wrapped.linear_spec_generate(torch.tensor([prompt]), max_new_tokens=new, eos_token_id=-1)
            greedy, _ = wrapped.ar_generate(torch.tensor([prompt]), max_new_tokens=new, eos_token_id=-1)
            assert torch.equal(drafted, greedy), "self-speculation with the adapter is not the base model's greedy text"
    return peft.__version__, answers


def run_mlx_vlm(folder: str, prompts: Prompts, new: int) -> tuple[str, list[Answer]]:
    """mlx-vlm's own class on the CPU."""
    import torch

    mx, mlx_vlm = importlib.import_module("mlx.core"), importlib.import_module("mlx_vlm")

    mx.set_default_device(mx.cpu)
    model, _ = mlx_vlm.load(folder, trust_remote_code=True)

    def logits_of(ids: list[int]) -> Any:
        logits = model(mx.array([ids])).logits[0].astype(mx.float32)
        return torch.tensor(logits.tolist())

    return mlx_vlm.__version__, [score_greedy(logits_of, prompt, new) for prompt in prompts]


def run_vllm(folder: str, prompts: Prompts, new: int) -> tuple[str, list[Answer]]:
    """vLLM's own class."""
    vllm = importlib.import_module("vllm")

    longest = max(map(len, prompts)) + new
    engine = vllm.LLM(folder, max_model_len=longest, dtype="float32", enforce_eager=True)
    settings = vllm.SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, logprobs=1)
    made = engine.generate([vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], settings)
    answers = []
    for each in (request.outputs[0] for request in made):
        logprobs = [seen[token].logprob for token, seen in zip(each.token_ids, each.logprobs, strict=True)]
        answers.append({"tokens": list(each.token_ids), "logprobs": logprobs})
    return vllm.__version__, answers


RUNTIMES = {"transformers": run_transformers, "peft": run_peft, "mlx-vlm": run_mlx_vlm, "vllm": run_vllm}


def run_request() -> None:
    """Answer one request."""
    runtime, folder, request, answer = sys.argv[1:]
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    version, answers = RUNTIMES[runtime](folder, asked["prompts"], asked["new"])
    Path(answer).write_text(json.dumps({"version": version, "answers": answers}), encoding="utf-8")


if __name__ == "__main__":
    run_request()

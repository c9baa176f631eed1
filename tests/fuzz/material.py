"""A small undamaged copy of everything that the product reads, as relative paths below one folder."""

import bz2
import gzip
import json
import lzma
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from data_prep.prepare_chat import ChatOptions, prepare_chat
from data_prep.prepare_text import TextOptions, prepare_text
from data_prep.train_tokenizer import train_tokenizer
from nld_train.config import DrafterConfig, RunConfig
from nld_train.convert.adapter import FIXED
from nld_train.convert.safetensors_file import write_safetensors
from nld_train.convert.weight_table import adapter_mappings
from nld_train.recipe import run_to_json
from nld_train.run_folder.attempts import record_end, record_start, record_submission
from tests.convert.conftest import export, imported, random_output
from tests.distributed.ranks import on, small_run

TEXTS = [f"def function_{i}(value):\n    return value * {i}  # the end of line {i}\n" for i in range(60)]
RECIPE = """from pathlib import Path
from nld_train.recipe import run_from_json

def run():
    return run_from_json(Path("plain.json").read_text())
"""
SITE = """# a site
NLD_ACCOUNT=none
NLD_PARTITION="batch"
NLD_TIME=4:00:00
NLD_GPUS_PER_NODE=0
NLD_FOLDER=/
NLD_COMMAND=bin/sh
NLD_SETUP="module load cuda"
NCCL_IB_HCA=mlx5
"""


def build_material() -> None:
    """Fill the current folder."""
    here = Path(".")
    for i in range(0, 60, 10):
        Path(f"corpus/part{i}.py").parent.mkdir(exist_ok=True)
        Path(f"corpus/part{i}.py").write_text("".join(TEXTS[i : i + 10]))
    train_tokenizer(["corpus"], "tokenizer", vocab_size=400)
    shutil.copytree("tokenizer", "processor")
    text = Path("processor/chat_template.jinja").read_text()
    Path("processor/chat_template.jinja").unlink()
    Path("processor/chat_template.json").write_text(json.dumps({"chat_template": text}))
    for name in ("a", "b"):
        prepare_text(["corpus"], f"data/{name}", "tokenizer", TextOptions(workers=1))
    write_inputs()
    prepare_chat(["inputs/chats.jsonl"], "data/chat", "tokenizer", ChatOptions(workers=1, date="2026-01-01"))
    run = small_run("run", here, alpha=0.3, init=None, parallel=on(1))
    run = replace(run, model=replace(run.model, layers=2), data=replace(run.data, blend=("0.5:data/a", "0.5:data/b")))
    write_run_folder(run)
    imported(export(Path("run"), Path("hf"), dtype=torch.float32), Path("import"))
    export(Path("run"), Path("sharded"), dtype=torch.float32, shard_bytes=300_000)
    write_adapter_folder(run)
    Path("recipe.py").write_text(RECIPE)
    Path("plain.json").write_text(run_to_json(run))
    Path("site.env").write_text(SITE)
    Path("prompts.txt").write_text("import os\ndef main\n")
    answer = {
        "mode": "ar",
        "pieces": ["a", "b"],
        "order": [1, 2],
        "forwards": 2,
        "detail": "prefill 1, decode 1",
        "tokens_per_forward": 1.0,
        "tokens_per_second": 2.0,
        "accepted_lengths": [1, 2],
    }
    Path("answers.json").write_text(json.dumps({"prompt": "import", "answers": [answer]}))


def write_run_folder(run: RunConfig) -> None:
    """A run whose last step is saved, with everything that its start and its ranks leave."""
    output = random_output(run, torch.float32)
    os.rename(output / "checkpoints/iter_0000000", output / "checkpoints/iter_0000004")
    (output / "checkpoints/latest_checkpointed_iteration.txt").write_text("4")
    entries = [
        {"kind": kind, "step": step, "AR loss": 6.0 - step, "diffusion loss": 7.0 - step, "gradient norm": 1.0}
        for step in range(5)
        for kind in ("validation", "train")
    ]
    (output / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    record_submission(output, "7", None)
    record_start(output, 0, ["node1"], {"SLURM_JOB_ID": "7"})
    record_end(output, 4, 0)


def write_adapter_folder(run: RunConfig) -> None:
    drafter = DrafterConfig(rank=4, alpha=8.0)
    parts = [part for unit in adapter_mappings(run.model, drafter.rank) for part in unit.parts]
    folder = Path("adapter/linear_spec_lora")
    folder.mkdir(parents=True)
    content = FIXED | {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "base_model_name_or_path": "run"}
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2))
    generator = torch.Generator().manual_seed(1)
    numbers = (torch.randn(part.shape, generator=generator) for part in parts)
    write_safetensors(folder / "adapter_model.safetensors", parts, torch.float32, numbers)


def write_inputs() -> None:
    """The same texts in every form that `nld data prepare` reads, and conversations in two."""
    from pyarrow import CompressedOutputStream, Table, parquet

    folder = Path("inputs")
    folder.mkdir()
    lines = "".join(json.dumps({"text": text, "number": i}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "text.jsonl").write_text(lines)
    (folder / "list.json").write_text(json.dumps([json.loads(line) for line in lines.splitlines()], indent=1))
    (folder / "plain.txt").write_text("".join(TEXTS))
    (folder / "table.csv").write_text("text,number\n" + "".join(f'"{text}",1\n' for text in TEXTS))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "packed.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    (folder / "packed.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    with CompressedOutputStream(str(folder / "packed.jsonl.zst"), "zstd") as stream:
        stream.write(lines.encode())
    table = Table.from_pylist([json.loads(line) for line in lines.splitlines()])
    for name, options in (("plain", {"compression": "none"}), ("snappy", {}), ("dictionary", {"use_dictionary": True})):
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=20, **options)
    chats = [
        {"messages": [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": TEXTS[i]}]}
        for i in range(20)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    parquet.write_table(Table.from_pylist(chats), folder / "chats.parquet")

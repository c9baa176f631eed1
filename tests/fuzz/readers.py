"""Every reader of the product: its command, the files that it reads, and what it leaves behind when all is well."""

from collections.abc import Sequence
from dataclasses import dataclass

GENERATE = "--mode ar --max-new-tokens 4 --prompt import --device cpu"
WEIGHTS = ("hf/model.safetensors", "hf/config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Reader:
    """One command on the material, and what is damaged under it."""

    name: str
    command: str  # words with spaces between; a damaged word stands for "{}"
    files: Sequence[str] = ()  # one of them is damaged
    words: Sequence[str] = ()  # or one of these stands in the command
    rooms: Sequence[int] = ()  # or no file may have more than so many bytes, as on a full disk
    bodies: Sequence[str] = ()  # or one of these is the recipe's text
    outputs: Sequence[str] = ()  # what it writes; compared with that of the undamaged material, beside its stdout
    guarded: bool = False  # checksums cover the files, but for manifests: whatever changes the result must be seen
    without: Sequence[str] = ()  # damages that are none: the run would start afresh, as it may


def in_folder(folder: str, names: Sequence[str]) -> list[str]:
    return [f"{folder}/{name}" for name in names]


CHECKPOINT = in_folder("run/checkpoints/iter_0000004", ("manifest.json", ".metadata", "__0_0.distcp", "__0_5.distcp"))
RUN_FILES = ("run/run.json", "run/metrics.jsonl", "run/jobs.jsonl")
TOKEN_FILE = in_folder("data", ("a.idx", "a.bin", "a.manifest.json"))
CHAT_FILE = in_folder("data", ("chat.idx", "chat.bin", "chat.manifest.json", "chat.supervised.bin"))
INPUTS = ("text.jsonl", "list.json", "plain.txt", "table.csv", "packed.jsonl.gz", "packed.jsonl.bz2")
INPUTS += ("packed.jsonl.xz", "packed.jsonl.zst", "plain.parquet", "snappy.parquet", "dictionary.parquet")
PREPARED = ("made.bin", "made.idx")
PLACES = ("pipe", "corpus", "site.env/inside", "/proc/none/x", "x" * 300, "{}/y".format("z" * 300), "")
PLACES += ("a\nb/c", "/dev/null/x")
NO_FOLDERS = tuple(place for place in PLACES if place not in ("corpus", "a\nb/c"))  # a run would start in the others
ROOMS = (0, 100, 3000, 30_000)  # bytes
BAD_WORDS = (
    *("", "=", "train", "train.iterations", "train.iterations=", "train.iterations=-1", "train.iterations=nan"),
    *(
        "train.iterations=inf",
        "train.iterations=1e400",
        "optimizer.lr=nan",
        "optimizer.lr=-1",
        "model=3",
        "model.rope=1",
    ),
    *("data.blend=", "data.blend=,", "data.blend=:", "data.blend=nan:data/a", "data.split=abc", "data.split=0,0,0"),
    *("data.workers=-1", "optimizer.beta1=1.5", "train.eval_batches=-1", "parallel.timeout_minutes=1e18", "x" * 5000),
    *("init=nowhere", "output=", "output=a\nb", "name=\x01", "train.seed=-1", "train.seed=1e30", "train.iterations=١"),
    *("\udce9=1", "name=\udce9", "train.tokens=1", "train.tokens=1e30", "model.layers=1e12", "model.hidden=1e12"),
)
RAISES = (
    *("raise ValueError('two\\nlines')", "import sys; sys.exit(3)", "raise SystemExit('a word')", "1 / 0"),
    *("import not_there", "def run(", "x = '\\ud800'", "run = None", "run = 3", "RUNS = {}", "RUNS = {1: print}"),
    *("RUNS = 'abc'", "def run():\n    return None", "def run():\n    return {}", "def run(x):\n    return x"),
    *("def run():\n    import sys\n    sys.exit()", "def run():\n    return run()", "def run():\n    assert False"),
    *("def run():\n    raise KeyError('a')", "def run():\n    raise Exception", "def run():\n    exit(0)"),
    *("def run():\n    open('nowhere')", "def run():\n    raise KeyboardInterrupt", "raise RuntimeError('x' * 9000)"),
    *("from nld_train.config import TrainConfig\ndef run():\n    return TrainConfig()", "class run: pass", "\x00"),
    *("from nld_train.config import TrainConfig\ndef run():\n    return TrainConfig(global_batch='a')", "# \xe9\nx = "),
    "from pathlib import Path\nfrom dataclasses import replace\nfrom nld_train.recipe import run_from_json\n"
    "def run():\n    return replace(run_from_json(Path('plain.json').read_text()), name=3, train=None)",
    "class Odd(BaseException): pass\ndef run():\n    raise Odd('odd')",
)
PROMPTS = ("caf\udce9", "", " ", "\x00", "\u2028", "x" * 5000, "\ud800", "<s></s>")
READERS = (
    Reader("report: run", "report run --html page.html", RUN_FILES[:2], outputs=("page.html",)),
    Reader("jobs: run", "jobs run", RUN_FILES),
    Reader("requeue: run", "requeue recipe.py --status 1 --how left", RUN_FILES[2:]),
    Reader(
        "train: a finished run", "train recipe.py", (*RUN_FILES, "data/a.manifest.json", "tokenizer/tokenizer.json")
    ),
    Reader("train: a saved checkpoint", "train recipe.py", CHECKPOINT[:1], without=("file_for_folder", "remove_file")),
    Reader(
        "export: checkpoint",
        "convert export run --to made",
        CHECKPOINT,
        outputs=("made/model.safetensors",),
        guarded=True,
    ),
    Reader(
        "export: run and model",
        "convert export run --to made --no-verify",
        ("run/run.json", "run/model.json"),
        outputs=("made/config.json",),
    ),
    Reader(
        "export: import",
        "convert export import --to made --no-verify",
        ("import/import.json", "import/model.json"),
        outputs=("made/config.json",),
    ),
    Reader(
        "import: weights",
        "convert import hf --to made --no-verify",
        WEIGHTS[:1],
        outputs=("made/checkpoints/iter_0000000/manifest.json",),
    ),
    Reader(
        "import: config",
        "convert import hf --to made",
        ("hf/config.json", "hf/generation_config.json"),
        outputs=("made/import.json", "made/model.json"),
    ),
    Reader(
        "import: index",
        "convert import sharded --to made --no-verify",
        ("sharded/model.safetensors.index.json", "sharded/model-00001-of-00002.safetensors"),
        outputs=("made/import.json",),
    ),
    Reader(
        "import: tokenizer",
        "convert import hf --to made --no-verify",
        in_folder("hf", TOKENIZER),
        outputs=("made/import.json",),
    ),
    Reader(
        "init: a folder",
        "train recipe.py output=fresh init=import --dry-run",
        ("import/model.json", "import/import.json"),
    ),
    Reader("generate: folder", f"generate --model hf {GENERATE}", (*WEIGHTS, "hf/generation_config.json")),
    Reader("generate: shards", f"generate --model sharded {GENERATE}", ("sharded/model.safetensors.index.json",)),
    Reader("generate: tokenizer", f"generate --model hf --chat {GENERATE}", in_folder("hf", TOKENIZER)),
    Reader(
        "generate: adapter",
        f"generate --model hf --adapter adapter {GENERATE}",
        in_folder("adapter/linear_spec_lora", ("adapter_config.json", "adapter_model.safetensors")),
    ),
    Reader(
        "generate: prompt file",
        "generate --model hf --mode ar --max-new-tokens 2 --prompt-file prompts.txt",
        ("prompts.txt",),
    ),
    Reader("generate: prompt", "generate --model hf --mode ar --max-new-tokens 2 --prompt {}", words=PROMPTS),
    Reader(
        "generate: eos",
        f"generate --model hf {GENERATE} --eos-token-id {{}}",
        words=("-1", "400", "1e9", "nan", "x", "", "none", "2,400", "1,,2"),
    ),
    Reader(
        "report: answers",
        "report run --html page.html --answers answers.json",
        ("answers.json",),
        outputs=("page.html",),
    ),
    Reader("report: tokens", "report run --data data/a", TOKEN_FILE[:2]),
    Reader("inspect: tokens", "data inspect data/a --tokenizer tokenizer --verify", TOKEN_FILE, guarded=True),
    Reader("inspect: chat", "data inspect data/chat --tokenizer tokenizer --verify", CHAT_FILE, guarded=True),
    Reader(
        "inspect-chat: chat",
        "data inspect-chat data/chat --tokenizer tokenizer --html page.html",
        CHAT_FILE,
        outputs=("page.html",),
    ),
    *(
        Reader(
            f"prepare: {name}",
            f"data prepare inputs/{name} --tokenizer tokenizer --output made --workers 1",
            (f"inputs/{name}",),
            outputs=PREPARED,
        )
        for name in INPUTS
    ),
    *(
        Reader(
            f"prepare-chat: {name}",
            f"data prepare-chat inputs/{name} --tokenizer tokenizer --output made --workers 1 --date 2026-01-01",
            (f"inputs/{name}",),
            outputs=PREPARED,
        )
        for name in ("chats.jsonl", "chats.parquet")
    ),
    Reader(
        "prepare: tokenizer",
        "data prepare inputs/text.jsonl --tokenizer tokenizer --output made --workers 1",
        in_folder("tokenizer", TOKENIZER[:3]),
        outputs=PREPARED,
    ),
    Reader(
        "prepare-chat: tokenizer",
        "data prepare-chat inputs/chats.jsonl --tokenizer tokenizer --output made --workers 1 --date 2026-01-01",
        in_folder("tokenizer", TOKENIZER),
        outputs=PREPARED,
    ),
    Reader(
        "train-tokenizer: texts",
        "data train-tokenizer inputs/text.jsonl --output made --vocab-size 400",
        ("inputs/text.jsonl",),
    ),
    Reader("site file", "launch recipe.py --executor slurm --nodes 1 --dry-run --site site.env", ("site.env",)),
    Reader("recipe: its text", "train recipe.py --dry-run", bodies=RAISES),
    Reader("recipe: what it reads", "train recipe.py --dry-run", ("plain.json", "recipe.py")),
    Reader("overrides", "train recipe.py --dry-run {}", words=BAD_WORDS),
    Reader("output: train", "train recipe.py output={}", words=NO_FOLDERS),
    Reader("output: report", "report run --html {}", words=PLACES),
    Reader("output: show", "show visibility --svg {}", words=PLACES),
    Reader("output: generate", f"generate --model hf {GENERATE} --json {{}}", words=PLACES),
    Reader("output: inspect-chat", "data inspect-chat data/chat --tokenizer tokenizer --html {}", words=PLACES),
    Reader("output: export", "convert export run --no-verify --to {}", words=PLACES),
    Reader("output: import", "convert import hf --no-verify --to {}", words=PLACES),
    Reader(
        "output: prepare", "data prepare inputs/text.jsonl --tokenizer tokenizer --workers 1 --output {}", words=PLACES
    ),
    Reader(
        "output: prepare-chat",
        "data prepare-chat inputs/chats.jsonl --tokenizer tokenizer --workers 1 --output {}",
        words=PLACES,
    ),
    Reader("output: train-tokenizer", "data train-tokenizer corpus --vocab-size 400 --output {}", words=PLACES),
    Reader("output: stdlib-chat", "data stdlib-chat --output {}", words=PLACES),
    Reader("full disk: report", "report run --html page.html", rooms=ROOMS),
    Reader("full disk: generate", f"generate --model hf {GENERATE} --json answer.json", rooms=ROOMS),
    Reader("full disk: export", "convert export run --no-verify --to made", rooms=ROOMS),
    Reader("full disk: import", "convert import hf --no-verify --to made", rooms=ROOMS),
    Reader(
        "full disk: prepare",
        "data prepare inputs/text.jsonl --tokenizer tokenizer --workers 1 --output made",
        rooms=ROOMS,
    ),
    Reader(
        "full disk: prepare-chat",
        "data prepare-chat inputs/chats.jsonl --tokenizer tokenizer --workers 1 --output made",
        rooms=ROOMS,
    ),
    Reader("full disk: train-tokenizer", "data train-tokenizer corpus --vocab-size 400 --output made", rooms=ROOMS),
    Reader("full disk: stdlib-chat", "data stdlib-chat --output made.jsonl", rooms=ROOMS),
    Reader("full disk: train", "train recipe.py output=fresh", rooms=(0, 100)),
    Reader(
        "prepare-chat: template in JSON",
        "data prepare-chat inputs/chats.jsonl --tokenizer processor --output made --workers 1 --date 2026-01-01",
        ("processor/chat_template.json",),
        outputs=PREPARED,
    ),
)

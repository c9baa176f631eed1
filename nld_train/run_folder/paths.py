"""Every name in a run's output folder, spelled once.

OUTPUT/run.json          the frozen configuration
OUTPUT/model.json        the model's shape: what another run compares before it starts from these weights
OUTPUT/data.json         which data the run began with
OUTPUT/early_end.json    the run is finished before its last step: its evaluations got no better
OUTPUT/import.json       in the place of run.json: the folder is an import, and these are the ids of its source
OUTPUT/tokenizer/        an import's copy of its source's tokenizer
OUTPUT/checkpoints/      Megatron's torch_dist checkpoints, iter_*, and a file that names the newest; damaged_iter_*
OUTPUT/data_index/       which tokens make which row; made again where it is missing
OUTPUT/init/             the import of an init= that is a Hugging Face folder
OUTPUT/metrics.jsonl     one line per logged step and evaluation
OUTPUT/jobs.jsonl        every submission, start and end
OUTPUT/lock              names the start that writes into the folder
OUTPUT/stop              while it is there, the run stops after its step
OUTPUT/refused.txt       why the memory trial refused the last start
OUTPUT/logs/             launcher.log of torchrun, and rank_N.log of every rank
OUTPUT/tensorboard/  OUTPUT/wandb/  OUTPUT/slurm/  OUTPUT/nemo/
"""

from pathlib import Path

RUN, MODEL, METRICS, JOBS = "run.json", "model.json", "metrics.jsonl", "jobs.jsonl"
DATA, EARLY_END = "data.json", "early_end.json"
IMPORT, TOKENIZER = "import.json", "tokenizer"
IMPORTED = "init"
CHECKPOINTS, STEP_PREFIX, DATA_INDEX, LOGS = "checkpoints", "iter_", "data_index", "logs"
STOP, LOCK, REFUSAL = "stop", "lock", "refused.txt"
TENSORBOARD, SLURM, NEMO = "tensorboard", "slurm", "nemo"
TRACKER = "latest_checkpointed_iteration.txt"
# Megatron-Bridge's state of a checkpoint, and its copy of the newest one's, from which it reads the step.
TRAIN_STATE, NEWEST_TRAIN_STATE = "train_state.pt", "latest_train_state.pt"
TRAINED_OR_IMPORTED = "the output folder of `nld train` or of `nld convert import`"


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder is a Hugging Face checkpoint; output folders have no config.json."""
    return (folder / "config.json").is_file()


def checkpoints_folder(output: Path) -> Path:
    return output / CHECKPOINTS


def step_folder(output: Path, step: int) -> Path:
    """The checkpoint of one step."""
    return checkpoints_folder(output) / f"{STEP_PREFIX}{step:07d}"


def logs_folder(output: str) -> Path:
    """The folder of log files, made where it is missing."""
    folder = Path(output) / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def launcher_log(output: str, node: int) -> Path:
    """The log of a node's torchrun: what it writes to its stderr."""
    return logs_folder(output) / (f"launcher_node{node}.log" if node else "launcher.log")


def rank_log(output: str, rank: int) -> Path:
    """The log of a rank: everything that it and its libraries print."""
    return logs_folder(output) / f"rank_{rank}.log"


def data_index_folder(output: str) -> Path:
    """The folder that keeps which tokens make which row."""
    return Path(output) / DATA_INDEX

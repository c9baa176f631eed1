"""A real short training by `nld train`, as a user gives it: does bf16 on this device learn what float32 on a CPU does,
and does a run that is resumed continue bit for bit?

1. Text that every machine has is prepared, as the demo does.
2. Stage 1 makes weights, on the CPU in float32: from the same seed a GPU draws other ones.
3. Stage 2 goes on from them twice: on the CPU in float32, and on the device in bf16, with deterministic kernels, over
   NCCL on a GPU and gloo on a CPU.
4. The second one's last checkpoint is taken away, and the same command takes the second half of its steps again.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from nld_train.bench.measure import TimeBudget
from nld_train.bench.nld_commands import CommandFailure, NldCommands
from nld_train.bench.outcome import OK, WRONG, BenchOutcome, bench_environment
from nld_train.run_folder.metrics import Entry, entries_of_kind, read_metrics
from nld_train.run_folder.paths import METRICS, step_folder

HEAD = ["trained", "found", "bound", "result"]
SEED_STEPS = 20
WINDOW = 10  # steps that a curve is averaged over, because a step's diffusion loss is noisy
LOSSES = ("AR loss", "diffusion loss")
EARLY = 2  # windows before the curves drift apart
# Of the mean loss of a window, relative. What is computed wrongly shows at once. Later, where the loss falls fast, two
# trainings drift apart by rounding alone: the diffusion loss on a CPU by 0.3 % in 20 steps and by 3.7 % in 120.
EARLY_BOUND, CURVE_BOUND = 0.01, 0.10
NOT_COMPARED = "tokens/s"
MOST_RANKS = 2  # on GPUs; the batch of the recipes divides by it
EVERY_STEP = ("log.interval=1", "train.eval_batches=0", "train.eval_decode=0", "optimizer.warmup_iterations=2")
NOT_RUN = "not run"  # the verdict on what there was no time for


@dataclass(frozen=True)
class TrainingCase:
    """One thing that the training shows."""

    case: str
    figure: str
    bound: str
    verdict: str  # OK, WRONG or NOT_RUN

    def cells(self) -> list[str]:
        """The case as a row of the table, in the columns of HEAD."""
        return [self.case, self.figure, self.bound, self.verdict]


@dataclass(frozen=True)
class ShortTraining:
    """How much is trained."""

    steps: int  # of stage 2; saved half-way and at the end
    budget: float  # seconds for all of it
    settings: tuple[str, ...] = ()  # overrides of both recipes


def bench_training(asked: ShortTraining, device: torch.device) -> BenchOutcome:
    """Train, and say what was found; what fails or does not end in time is said too, and the rest still counts."""
    cases: list[TrainingCase] = []
    curves: dict[str, list[Entry]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="nld-training-") as folder,
        NldCommands(Path(folder), TimeBudget(asked.budget)) as commands,
    ):
        try:
            _train_and_compare(asked, device, commands, cases, curves)
        except CommandFailure as failure:
            cases.append(TrainingCase(failure.what, str(failure), "status 0", NOT_RUN if failure.cut else WRONG))
    ranks, where = _device_ranks(device), "NCCL" if device.type == "cuda" else "gloo"
    subject = f"tiny_stage2_joint, {asked.steps} steps, bf16, {ranks} rank(s), {where}; float32 on the CPU"
    return BenchOutcome(
        "training",
        subject,
        HEAD,
        [case.cells() for case in cases],
        [f"Curves are means of {WINDOW} steps, from weights that {SEED_STEPS} steps of stage 1 made."],
        {"cases": [vars(case) for case in cases], "curves": curves},
        wrong=any(case.verdict == WRONG for case in cases),
        environment=bench_environment(device),
    )


def _train_and_compare(
    asked: ShortTraining,
    device: torch.device,
    commands: NldCommands,
    cases: list[TrainingCase],
    curves: dict[str, list[Entry]],
) -> None:
    """Fills `cases` and `curves` as far as it comes. Raises: CommandFailure."""
    # 1. and 2. Text and weights.
    _prepare_almanac(commands)
    folder = commands.folder
    data = (f"data.blend={folder}/data/almanac", f"data.tokenizer={folder}/tokenizer", "data.skip_rows=0")
    common = (*data, *EVERY_STEP, *asked.settings)
    seed = ("tiny_stage1_ar", f"output={folder}/seed", f"train.iterations={SEED_STEPS}", *common)
    commands.run("weights of stage 1", ["train", "--nproc", "1", *seed], on_cpu=True)
    # 3. Both curves; on a CPU one after the other, because they would take each other's cores.
    half, ranks = asked.steps // 2, _device_ranks(device)
    lengths = (f"train.iterations={asked.steps}", f"checkpoint.interval={half}", "optimizer.decay_iterations=0")
    joint = ("tiny_stage2_joint", f"init={folder}/seed", *lengths, *common)
    name = "float32 on the CPU"
    cpu_run = commands.start(name, ["train", "--nproc", "1", *joint, f"output={folder}/fp32"], on_cpu=True)
    if device.type == "cpu":
        commands.wait(cpu_run)
    here = ["train", "--nproc", str(ranks), *joint, "train.precision=bf16"]
    deterministic = [*here, "train.deterministic=true", f"output={folder}/bf16"]
    trained = folder / "bf16"
    try:
        commands.run("deterministic training", deterministic)
    except CommandFailure as failure:
        if failure.cut:
            raise
        # A library may have no such kernel; the curve is worth knowing all the same.
        cases.append(TrainingCase(failure.what, str(failure), "status 0", WRONG))
        trained = folder / "bf16_as_fast"
        commands.run("training in bf16", [*here, f"output={trained}"])
    curves["bf16"] = read_train_entries(trained)
    if device.type != "cpu":
        commands.wait(cpu_run)
    curves["float32"] = read_train_entries(folder / "fp32")
    cases += curve_cases(curves["bf16"], curves["float32"])
    # 4. The second half once more.
    if trained == folder / "bf16":
        shutil.rmtree(step_folder(trained, asked.steps))
        commands.run("resumed training", deterministic)
        cases.append(resumed_case(curves["bf16"], read_train_entries(trained), half))


def _prepare_almanac(commands: NldCommands) -> None:
    """The demo's text, tokenizer and token file."""
    folder, what = commands.folder, "preparing text"
    text, tokenizer = f"{folder}/almanac/text.jsonl", f"{folder}/tokenizer"
    commands.run(what, ["data", "almanac", "--output", f"{folder}/almanac"])
    commands.run(what, ["data", "train-tokenizer", text, "--chat-words", "--output", tokenizer])
    commands.run(what, ["data", "prepare", text, "--tokenizer", tokenizer, "--output", f"{folder}/data/almanac"])


def _device_ranks(device: torch.device) -> int:
    """Ranks of the run on the device."""
    return min(MOST_RANKS, torch.cuda.device_count()) if device.type == "cuda" else 1


def read_train_entries(output: Path) -> list[Entry]:
    """The training steps that a run has logged, without what depends on the clock."""
    entries = entries_of_kind(read_metrics(output / METRICS), "train")
    return [{name: value for name, value in entry.items() if name != NOT_COMPARED} for entry in entries]


def curve_cases(found: Sequence[Entry], expected: Sequence[Entry]) -> list[TrainingCase]:
    """Whether two curves are near each other in every window, and whether the first one falls."""
    steps = [entry["step"] for entry in expected]
    if not steps or [entry["step"] for entry in found] != steps:
        return [TrainingCase("curve", f"{len(found)} and {len(expected)} steps", "the same steps", WRONG)]
    cases = []
    for loss in LOSSES:
        here, there = window_means(found, loss), window_means(expected, loss)
        gaps = [abs(a - b) / b for a, b in zip(here, there, strict=True)]
        near = all(gap <= EARLY_BOUND for gap in gaps[:EARLY]) and all(gap <= CURVE_BOUND for gap in gaps)  # NaN is not
        figure = f"off by {max(gaps[:EARLY]):.2%}, later {max(gaps):.2%}; {here[0]:.3f} to {here[-1]:.3f}"
        bound = f"{EARLY_BOUND:.0%} in {EARLY * WINDOW} steps, {CURVE_BOUND:.0%}"
        cases.append(TrainingCase(f"{loss}, bf16 beside float32", figure, bound, OK if near else WRONG))
    return cases


def window_means(entries: Sequence[Entry], loss: str) -> list[float]:
    """The mean loss of each WINDOW steps; the last window may be shorter."""
    values = [entry[loss] for entry in entries]
    return [fmean(values[place : place + WINDOW]) for place in range(0, len(values), WINDOW)]


def resumed_case(undisturbed: Sequence[Entry], resumed: Sequence[Entry], half: int) -> TrainingCase:
    """Whether every figure of the steps after `half` is the same in both, bit for bit."""
    before, after = (_entries_after(entries, half) for entries in (undisturbed, resumed))
    same = sum(after.get(step) == entry for step, entry in before.items())
    whole = bool(before) and before.keys() == after.keys() and same == len(before)
    figure = f"{same} of {len(before)} steps have every figure the same"
    return TrainingCase("resumed half-way, deterministic", figure, "every bit", OK if whole else WRONG)


def _entries_after(entries: Sequence[Entry], step: int) -> Mapping[float, Entry]:
    return {entry["step"]: entry for entry in entries if entry["step"] > step}

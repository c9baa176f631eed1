"""What one node can try of a run before all nodes are taken: ranks, memory, and a short training at its width."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nld_train.bench.nld_commands import failure_said
from nld_train.config import RunConfig
from nld_train.doctor.accelerator import Gpus
from nld_train.doctor.finding import DoctorFinding, gb_text, refusal_finding
from nld_train.errors import UserError
from nld_train.plan.memory import CAPACITY, worst_stage
from nld_train.recipe import replace_settings, run_to_json
from nld_train.rehearsal.attention_kernels import case_of_run, compile_kernels
from nld_train.rehearsal.fake_ranks import RankQuestion, ask_ranks, fullest_rank
from nld_train.rehearsal.memory_table import MemoryComparison
from nld_train.rehearsal.rank_share import ranks_to_ask, share_faults

READERS = 4  # ranks with rows of their own that are asked, of however many there are
STEPS, LAYERS = 2, 2  # of the short training
NEAR = 0.1  # how far memory may be from the plan
MOST_SECONDS = 900


def rehearse_run(run: RunConfig, gpus: Gpus) -> list[DoctorFinding]:
    """Try all of it, one after another; minutes. Nothing is left behind."""
    ranks = ranks_to_ask(run, READERS)
    questions = [RankQuestion(run, rank, "share") for rank in ranks]
    *shares, peak = ask_ranks([*questions, RankQuestion(run, fullest_rank(run), "memory")])
    found = MemoryComparison(run.name, worst_stage(run), peak)
    tried = [ranks_finding(run, shares), memory_finding(found, gpus), kernels_finding(run)]
    return [*tried, training_finding(run, gpus)]


def ranks_finding(run: RunConfig, shares: Sequence[dict]) -> DoctorFinding:
    """Whether the ranks that were asked share out rows and weights as one run must."""
    check, asked = "rehearsed ranks", f"{len(shares)} of {run.parallel.world_size} ranks asked, one after another"
    faults = share_faults(run, shares)
    if faults:
        return DoctorFinding(check, f"{asked}: {faults[0]}", "FAIL", "report this layout: it would train wrongly")
    said = "groups built; rows read once, the same by ranks that share a model; weights whole"
    return DoctorFinding(check, f"{asked}: {said}")


def memory_finding(found: MemoryComparison, gpus: Gpus) -> DoctorFinding:
    """The peak of a simulated step against the plan and against the GPU."""
    check, total = "rehearsed memory", sum(found.simulated.values())
    room = min(gpus.memory) if gpus.names else int(CAPACITY)
    said = f"{gb_text(total)} at the peak of a step on fake tensors, {found.ratio:.2f} of the plan"
    said += f"; room for {gb_text(room)}"
    if total > room:
        do = "raise parallel.tensor, lower train.micro_batch, or set parallel.recompute=full"
        return DoctorFinding(check, said, "FAIL", do)
    if abs(found.ratio - 1) > NEAR:
        return DoctorFinding(check, said, "note", "trust the larger of the two, and report this")
    return DoctorFinding(check, said)


def kernels_finding(run: RunConfig) -> DoctorFinding:
    """Whether the attention kernels of the run's rows compile for an H100 and can be started there."""
    check = "rehearsed kernels"
    if run.train.attention not in ("auto", "flex") or run.parallel.context > 1:
        said = f"left out: train.attention={run.train.attention}, parallel.context={run.parallel.context}"
        return DoctorFinding(check, said, "note", "flex_attention on whole rows is what can be compiled ahead")
    try:
        kernels = compile_kernels(case_of_run(run))
    except UserError as error:
        return refusal_finding(check, error)
    worst = max(kernels, key=lambda each: (not each.fits, each.registers, each.shared))
    said = f"flex_attention for an H100: {len(kernels)} kernels, at most {worst.registers} registers"
    said += f" and {max(each.shared for each in kernels):,} bytes of shared memory"
    if not worst.fits:
        do = "report this shape: its kernel cannot be started"
        return DoctorFinding(check, f"{said}: {worst.name} is too large", "FAIL", do)
    return DoctorFinding(check, said)


def training_finding(run: RunConfig, gpus: Gpus) -> DoctorFinding:
    """Whether this node trains the run's shape: two layers, two steps on its own data, saved and continued."""
    check, places = "rehearsed training", len(gpus.names) or len(os.sched_getaffinity(0))
    cut = run.parallel.tensor * run.parallel.context
    if run.drafter is not None:
        return DoctorFinding(
            check, "left out: a drafter needs its whole frozen model", "note", "rehearse the SFT stage"
        )
    if cut > places:
        do = "rehearse on a node with more"
        return DoctorFinding(check, f"left out: tensor x context = {cut}, and {places} places here", "note", do)
    with tempfile.TemporaryDirectory(prefix="nld-rehearsal-") as folder:
        for steps in (STEPS, 2 * STEPS):  # the second goes on from the first one's checkpoint
            short = short_run(run, f"{folder}/out", places // cut * cut, steps)
            ended = _train(short, Path(folder))
            if ended is not None:
                return DoctorFinding(check, ended, "FAIL", "mend this first: the whole run would end in the same way")
    world = short.parallel.world_size
    said = f"{short.model.layers} layers of its width on {world} rank(s): {STEPS} steps, saved, {STEPS} more"
    return DoctorFinding(check, said)


def short_run(run: RunConfig, output: str, world_size: int, steps: int) -> RunConfig:
    """The run with a few layers and steps from random weights, on one node: no pipeline, one micro-batch a step."""
    readers = world_size // (run.parallel.tensor * run.parallel.context)
    settings: dict[str, object] = {
        "name": f"{run.name}_rehearsal",
        "output": output,
        "init": None,
        "init_step": None,
        "init_optimizer": False,
        "model.layers": min(LAYERS, run.model.layers),
        "parallel.world_size": world_size,
        "parallel.pipeline": 1,
        "parallel.virtual_pipeline": 1,
        "train.iterations": steps,
        "train.global_batch": run.train.micro_batch * readers,
        "train.eval_batches": 0,
        "train.eval_decode": 0,
        "data.skip_rows": 0,
        "optimizer.warmup_iterations": 0,
        "optimizer.decay_iterations": 0,
        "checkpoint.interval": STEPS,
        "log.interval": 1,
        "log.wandb": "disabled",
    }
    return replace_settings(run, settings)


def _train(run: RunConfig, folder: Path) -> str | None:
    """Train it by `nld train`. Returns: the line that says what went wrong, or None. Logs that the run's own last line
    names are gone when it is read."""
    recipe = folder / "rehearsal.py"
    text = (
        f"from nld_train.recipe import run_from_json\n\n\ndef run():\n    return run_from_json({run_to_json(run)!r})\n"
    )
    recipe.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "nld_train.cli", "train", str(recipe)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not end within {MOST_SECONDS} s"
    if done.returncode == 0:
        return None
    return f"status {done.returncode}: {failure_said(f'{done.stdout}\n{done.stderr}')}"

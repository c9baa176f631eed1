"""Recipes as nemo-run tasks: nemo-run's torchrun launcher starts the ranks, on this machine or under Slurm.

This file decides where a run is placed; the recipe decides what is trained. Every rank is an `nld train` under
torchrun, and trains as a rank that `nld train` starts itself.
"""

import shlex
import signal
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import nemo_run  # type: ignore[import-untyped]
from nemo_run.config import get_nemorun_home  # type: ignore[import-untyped]

from nld_train.config import RunConfig, require
from nld_train.exit_status import CANCELLED_JOB, STOPPED
from nld_train.launch.placement import place_on_nodes
from nld_train.launch.sbatch_script import ASK_SLURM, sbatch_header, secret_lines, slurm_signal
from nld_train.launch.site import NONE, Site
from nld_train.recipe import portable_recipe_name
from nld_train.run_folder.paths import JOBS
from nld_train.signals import TIME_IS_UP, TORCHRUN_SIGNALS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nld_train", "recipes", "data_prep")  # what a rank imports of the working tree
# nemo-run's name for a job's own folder: its mount in a container; without one, nemo-run puts the path in its place.
JOB_FOLDER = "/nemo_run"
FIRST_PORT, PORTS = 20_000, 10_000  # ports of the rendezvous, below the ports that systems hand out

# What the first node does before srun; nemo-run leaves no other place for it.
SETUP = """\
{setup}
# Each node runs one task, which needs all of the node's cores.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_ON_NODE" SLURM_CPU_BIND=none
NLD_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ' ')
export NLD_NODES
{ask_slurm}# Cancelled: not queued again.
trap 'trap - EXIT; exit {cancelled}' TERM
# The run's record of this start says that the run saved before its last step, because the time was up: the same job
# goes on.
record() {{ cat {jobs} 2>/dev/null; }}
before=$(record | wc -l)
again() {{ record | tail -n "+$((before + 1))" | grep -q '"status": {stopped}'; }}
trap 'if again; then ask_slurm scontrol requeue "$SLURM_JOB_ID"; fi' EXIT"""
# What stands between srun and torchrun, which would end its ranks on the signals that ask them to save.
ON_NODE = """cd {folder} && {path}trap "" {signals} && exec "$@\""""


def recipe_task(recipe: str, overrides: Sequence[str] = ()) -> nemo_run.Script:
    """The task `nld train RECIPE key=value ...`, for an executor of this file.

    Raises: UserError for words that nemo-run would not pass on as they are.
    """
    named = portable_recipe_name(recipe)
    for word in (named, *overrides):
        check_plain_word(word, "put it into a recipe file of your own, or use --executor slurm")
    return nemo_run.Script(path="nld_train.cli", args=["train", named, *overrides], entrypoint="python", m=True)


def local_executor(run: RunConfig) -> nemo_run.LocalExecutor:
    """An executor that starts all ranks on this machine, with the code of the working tree itself."""
    return nemo_run.LocalExecutor(
        ntasks_per_node=run.parallel.world_size,
        launcher=torchrun_launcher(run),
        env_vars={"PATH": str(Path(sys.executable).parent), "LOGLEVEL": "WARNING"},
    )


def slurm_executor(run: RunConfig, site: Site, nodes: int | None = None) -> nemo_run.SlurmExecutor:
    """An executor that starts the run on `nodes` nodes of the site; None: on as few as hold it.

    The code is a copy of the working tree, uncommitted changes included; data and outputs lie in the site's folder.
    Raises: UserError where the ranks do not fit the nodes.
    """
    placement, values = place_on_nodes(run, nodes, site.gpus_per_node), site.values
    for path in (ROOT, site.job_folder, get_nemorun_home(), *([site.path.absolute()] if site.secrets else [])):
        check_plain_word(str(path), "use another folder (NEMORUN_HOME is nemo-run's own)")
    in_pyxis = values["NLD_CONTAINER"] == "pyxis"
    variables = job_environment(site)
    return nemo_run.SlurmExecutor(
        account=None if values["NLD_ACCOUNT"] == NONE else values["NLD_ACCOUNT"],
        partition=values["NLD_PARTITION"],
        time=values["NLD_TIME"],
        job_name_prefix="nld.",
        nodes=placement.nodes,
        ntasks_per_node=1,
        torchrun_nproc_per_node=placement.ranks,
        gpus_per_node=site.gpus_per_node or None,
        exclusive=True,
        mem="0",
        signal=slurm_signal(values["NLD_SAVE_SECONDS"]),
        additional_parameters=extra_sbatch_options(site),
        container_image=values["NLD_IMAGE"] if in_pyxis else None,
        container_mounts=values["NLD_MOUNTS"].split(",") if in_pyxis and values["NLD_MOUNTS"] else [],
        container_env=sorted((*variables, *site.secrets)) if in_pyxis else None,
        env_vars=variables,
        setup_lines=SETUP.format(
            ask_slurm=ASK_SLURM,
            setup="\n".join([values["NLD_SETUP"], *secret_lines(site)]),
            jobs=shlex.quote(str(site.job_folder / run.output / JOBS)),
            stopped=STOPPED,
            cancelled=CANCELLED_JOB,
        ).lstrip(),
        srun_args=before_torchrun(site),
        packager=nemo_run.PatternPackager(
            include_pattern=[str(ROOT / name) for name in PACKAGES], relative_path=[str(ROOT)] * len(PACKAGES)
        ),
        launcher=torchrun_launcher(run),
        tunnel=nemo_run.LocalTunnel(job_dir=""),  # nemo-run's own folder, which every node must see
        poll_estimated_start_time=False,
    )


def torchrun_launcher(run: RunConfig) -> nemo_run.Torchrun:
    """torchrun with a port that depends on the output folder, so that runs that share a node do not collide."""
    number = FIRST_PORT + zlib.crc32(run.output.encode()) % PORTS
    return nemo_run.Torchrun(rdzv_port=number, rdzv_id=number)


def job_environment(site: Site) -> dict[str, str]:
    """The variables of the job, quoted for bash, because nemo-run writes them into the script as they are."""
    code = f"{JOB_FOLDER}/code"
    passed_on = {name: shlex.quote(value) for name, value in site.environment.items()}
    if "PYTHONPATH" in passed_on:
        code += f":{passed_on['PYTHONPATH']}"
    # Ranks run in the site's folder, and import the copied code even where that folder holds the same packages.
    imports = {"PYTHONPATH": code, "PYTHONSAFEPATH": "1"}
    # torchrun must not listen to SIGTERM, either: it would give its ranks half a minute for their step and their save.
    return {**passed_on, **imports, **TORCHRUN_SIGNALS, "LOGLEVEL": "WARNING"}


def before_torchrun(site: Site) -> list[str]:
    """The words between srun and torchrun, quoted for bash: a container of a kind that nemo-run does not know, and a
    shell that goes to the site's folder."""
    values, folder = site.values, shlex.quote(str(site.job_folder))
    words: list[str] = []
    if values["NLD_CONTAINER"] == "apptainer":
        words = ["apptainer", "exec", "--nv", "--pwd", folder]
        words += ["--bind", shlex.quote(values["NLD_MOUNTS"])] if values["NLD_MOUNTS"] else []
        words.append(shlex.quote(values["NLD_IMAGE"]))
    commands = Path(values["NLD_COMMAND"]).parent  # torchrun lies beside the nld command
    path = "" if commands == Path() else f"export PATH={shlex.quote(str(site.job_folder / commands))}:$PATH && "
    ignored = " ".join(number.name.removeprefix("SIG") for number in (TIME_IS_UP, signal.SIGTERM))
    return [*words, "bash", "-c", shlex.quote(ON_NODE.format(folder=folder, path=path, signals=ignored)), "bash"]


def extra_sbatch_options(site: Site) -> dict[str, str | bool]:
    """The names and values of the options in NLD_SBATCH. Raises: UserError for short options."""
    options: dict[str, str | bool] = {}
    words = shlex.split(site.values["NLD_SBATCH"])
    sbatch_header(words)  # nemo-run quotes them, but does not refuse what Slurm would misread
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        what = f"{site.path}: {word!r} in NLD_SBATCH"
        require(word.startswith("--"), what, "--name=value or --name, for nemo-run", "write it so")
        options[name.replace("-", "_")] = value if equals else True
    return options


def check_plain_word(word: str, do: str) -> None:
    """Refuse a word that nemo-run would not pass on as it is. Raises: UserError.

    Its executors quote words in different ways, and in its Slurm script it replaces every JOB_FOLDER.
    """
    plain = shlex.quote(word) == word and JOB_FOLDER not in word
    require(plain, repr(word), f"words that a shell need not quote, without {JOB_FOLDER}, for nemo-run", do)

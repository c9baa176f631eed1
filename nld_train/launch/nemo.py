"""Recipes as nemo-run tasks: its torchrun launcher starts the ranks, on this machine or under Slurm.

Placement alone: what is trained stands in the recipe. Every rank is an `nld train` under torchrun, and trains as one
of `nld train` itself does.
"""

import shlex
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import nemo_run  # type: ignore[import-untyped]
from nemo_run.config import get_nemorun_home  # type: ignore[import-untyped]

from nld_train.config import RunConfig, require
from nld_train.exit_status import CANCELLED_JOB, STOPPED
from nld_train.launch.placement import place_on_nodes
from nld_train.launch.site import NONE, Site
from nld_train.recipe import portable_recipe_name
from nld_train.run_folder.paths import JOBS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nld_train", "recipes", "data_prep")  # of the working tree: what a rank imports
# nemo-run's name for a job's own folder: that of the mount in a container, and replaced by the path without one.
JOB_FOLDER = "/nemo_run"
FIRST_PORT, PORTS = 20_000, 10_000  # that nodes meet on: below those that systems hand out

# Before srun, on the first node. nemo-run leaves no other place for it.
SETUP = """\
{setup}
# One task a node, and it needs all of the node's cores.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_ON_NODE" SLURM_CPU_BIND=none
NLD_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -s -d ' ')
export NLD_NODES
# Cancelled: not queued again.
trap 'trap - EXIT; exit {cancelled}' TERM
# Saved before its end, because the time was up, as the run's record says since this start: the same job goes on.
record() {{ cat {jobs} 2>/dev/null; }}
before=$(record | wc -l)
again() {{ record | tail -n "+$((before + 1))" | grep -q '"status": {stopped}'; }}
trap 'if again; then scontrol requeue "$SLURM_JOB_ID"; fi' EXIT"""
# Between srun and torchrun, which would end its ranks on the signals that ask them to save.
ON_NODE = """cd {folder} && {path}trap "" USR1 TERM && exec "$@\""""


def recipe_task(recipe: str, overrides: Sequence[str] = ()) -> nemo_run.Script:
    """`nld train RECIPE key=value ...`, for an executor of this file. Raises: UserError for words it cannot pass on."""
    named = portable_recipe_name(recipe)
    for word in (named, *overrides):
        check_plain_word(word, "put it into a recipe file of your own, or use --executor slurm")
    return nemo_run.Script(path="nld_train.cli", args=["train", named, *overrides], entrypoint="python", m=True)


def local_executor(run: RunConfig) -> nemo_run.LocalExecutor:
    """All ranks on this machine, with the code where it lies."""
    return nemo_run.LocalExecutor(
        ntasks_per_node=run.parallel.world_size,
        launcher=torchrun_launcher(run),
        env_vars={"PATH": str(Path(sys.executable).parent), "LOGLEVEL": "WARNING"},
    )


def slurm_executor(run: RunConfig, site: Site, nodes: int | None = None) -> nemo_run.SlurmExecutor:
    """The run on `nodes` nodes of the site; None: as few as hold it.

    The code is a copy of the working tree, uncommitted changes included; data and outputs lie in the site's folder.
    Raises: UserError for ranks that do not fit.
    """
    placement, values = place_on_nodes(run, nodes, site.gpus_per_node), site.values
    for path in (ROOT, site.folder, get_nemorun_home()):
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
        signal=f"USR1@{values['NLD_SAVE_SECONDS']}",
        additional_parameters=extra_sbatch_options(site),
        container_image=values["NLD_IMAGE"] if in_pyxis else None,
        container_mounts=values["NLD_MOUNTS"].split(",") if in_pyxis and values["NLD_MOUNTS"] else [],
        container_env=sorted(variables) if in_pyxis else None,
        env_vars=variables,
        setup_lines=SETUP.format(
            setup=values["NLD_SETUP"],
            jobs=shlex.quote(str(site.folder / run.output / JOBS)),
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
    """torchrun; runs that share a node meet on ports of their own."""
    number = FIRST_PORT + zlib.crc32(run.output.encode()) % PORTS
    return nemo_run.Torchrun(rdzv_port=number, rdzv_id=number)


def job_environment(site: Site) -> dict[str, str]:
    """Variables of the job, in the spelling of bash; nemo-run writes them into the script as they are."""
    code = f"{JOB_FOLDER}/code"
    passed_on = {name: shlex.quote(value) for name, value in site.environment.items()}
    if "PYTHONPATH" in passed_on:
        code += f":{passed_on['PYTHONPATH']}"
    # Ranks run in the site's folder, and import the copy even where that folder holds the same packages.
    imports = {"PYTHONPATH": code, "PYTHONSAFEPATH": "1"}
    # torchrun is not to listen to SIGTERM, either: it would give its ranks half a minute for their step and save.
    return {**passed_on, **imports, "PET_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT", "LOGLEVEL": "WARNING"}


def before_torchrun(site: Site) -> list[str]:
    """The last words of srun, in the spelling of bash: the container where nemo-run does not know its kind, and a
    shell that goes to the site's folder."""
    values, folder = site.values, shlex.quote(str(site.folder))
    words: list[str] = []
    if values["NLD_CONTAINER"] == "apptainer":
        words = ["apptainer", "exec", "--nv", "--pwd", folder]
        words += ["--bind", shlex.quote(values["NLD_MOUNTS"])] if values["NLD_MOUNTS"] else []
        words.append(shlex.quote(values["NLD_IMAGE"]))
    commands = Path(values["NLD_COMMAND"]).parent  # torchrun lies beside the nld command
    path = "" if commands == Path() else f"export PATH={shlex.quote(str(site.folder / commands))}:$PATH && "
    return [*words, "bash", "-c", shlex.quote(ON_NODE.format(folder=folder, path=path)), "bash"]


def extra_sbatch_options(site: Site) -> dict[str, str | bool]:
    """NLD_SBATCH as names and values. Raises: UserError for short options."""
    options: dict[str, str | bool] = {}
    for word in shlex.split(site.values["NLD_SBATCH"]):
        name, equals, value = word.removeprefix("--").partition("=")
        what = f"{site.path}: {word!r} in NLD_SBATCH"
        require(word.startswith("--"), what, "--name=value or --name, for nemo-run", "write it so")
        options[name.replace("-", "_")] = value if equals else True
    return options


def check_plain_word(word: str, do: str) -> None:
    """Refuse what nemo-run would not pass on as it is: its executors quote words in different ways, and in its Slurm
    script every JOB_FOLDER is replaced. Raises: UserError."""
    plain = shlex.quote(word) == word and JOB_FOLDER not in word
    require(plain, repr(word), f"words that a shell need not quote, without {JOB_FOLDER}, for nemo-run", do)

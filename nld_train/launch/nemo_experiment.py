"""What `nld launch --executor nemo-run` does: it makes an experiment of nemo-run with one task.

The experiment's scripts and logs lie in NEMORUN_HOME: see nemo_home.py.
"""

import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import nemo_run  # type: ignore[import-untyped]
from invoke.exceptions import UnexpectedExit
from nemo_run.config import get_nemorun_home, set_nemorun_home  # type: ignore[import-untyped]
from nemo_run.run.torchx_backend.packaging import package  # type: ignore[import-untyped]
from torchx.specs import AppState, parse_app_handle  # type: ignore[import-untyped]

from nld_train.config import RunConfig
from nld_train.errors import UserError
from nld_train.exit_status import FAILED, FINISHED, LEFT_AT_ONCE
from nld_train.launch.nemo import local_executor, recipe_task, slurm_executor
from nld_train.launch.sbatch_script import Submission
from nld_train.launch.site import Site
from nld_train.run_folder.attempts import Attempt, read_attempts
from nld_train.run_folder.stop_file import stop_file
from nld_train.signals import SIGNALS

logger = logging.getLogger(__name__)


class SlurmSubmission:
    """A run that is to be handed to Slurm by nemo-run. Raises: UserError where nemo-run cannot take it."""

    def __init__(self, run: RunConfig, submission: Submission, site: Site, number: str | None = None) -> None:
        """number: the name of nemo-run's experiment; None: a new one."""
        self.name, self.number = run.name, number or new_experiment_number(run)
        self.task = recipe_task(submission.recipe, submission.overrides)
        self.executor = slurm_executor(run, site, submission.placement.nodes)
        if submission.after is not None:
            more = {"dependency": f"afterok:{submission.after}", "kill_on_invalid_dep": "yes"}
            self.executor.additional_parameters = {**(self.executor.additional_parameters or {}), **more}

    def script(self) -> str:
        """The whole script, as nemo-run will submit it; nothing is left on disk."""
        home = get_nemorun_home()
        with TemporaryDirectory() as scratch:
            set_nemorun_home(scratch)
            try:
                with self._experiment() as experiment:
                    experiment.dryrun(log=False, delete_exp_dir=False)
                path = Path(scratch) / "experiments" / self.name / self.number / f"{self.name}_sbatch.sh"
                return path.read_text(encoding="utf-8").replace(scratch, home)
            finally:
                set_nemorun_home(home)

    def submit(self) -> str:
        """Submit the run; returns the job's number. Raises: UserError with Slurm's own reason."""
        try:
            with self._experiment() as experiment:
                experiment.run(detach=True)
                return parse_app_handle(experiment.jobs[0].handle)[2]
        except UnexpectedExit as error:
            what = f"nemo-run cannot submit the job: {' '.join(error.result.stderr.split())}"
            raise UserError(what, "what `sbatch` takes", "see the message") from None

    @contextmanager
    def _experiment(self) -> Iterator[nemo_run.Experiment]:
        with redirect_stdout(StringIO()), quiet_experiment(self.name, self.number) as opened:
            opened.add(self.task, self.executor, name=self.name)
            yield opened


def new_experiment_number(run: RunConfig) -> str:
    """A name of an experiment as nemo-run makes them: the title, and the time in ns."""
    return f"{run.name}_{time.time_ns()}"


def quiet_experiment(name: str, number: str) -> nemo_run.Experiment:
    """An experiment that prints nothing itself, so that the terminal shows the run alone."""
    return nemo_run.Experiment(
        name, id=number, log_level="WARNING", clean_mode=True, skip_status_at_exit=True, enable_goodbye_message=False
    )


def local_command(run: RunConfig, recipe: str, overrides: list[str]) -> str:
    """The command that nemo-run's local executor starts, as a line."""
    application = package(
        run.name, recipe_task(recipe, overrides), local_executor(run), serialize_metadata_for_scripts=False
    )
    (role,) = application.roles
    variables = [f"{name}={shlex.quote(value)}" for name, value in role.env.items() if name != "PATH"]
    return " ".join([*variables, f"{role.env['PATH']}/{role.entrypoint}", *role.args]) + "\n"


def run_locally(run: RunConfig, recipe: str, overrides: list[str]) -> int:
    """Train with nemo-run's local executor; returns the exit status that `nld train` would have."""
    opened = quiet_experiment(run.name, new_experiment_number(run))
    requests = StopFileSignals(Path(run.output), stop_file(run.output), leave=lambda: opened.cancel(run.name))
    with requests.listening(), opened:
        opened.add(recipe_task(recipe, overrides), local_executor(run), name=run.name)
        opened.run(tail_logs=True)
    if requests.left:
        return LEFT_AT_ONCE
    if not requests.starts():
        return FINISHED if opened.jobs[0].state == AppState.SUCCEEDED else FAILED
    status = requests.starts()[-1].status
    return FAILED if status is None else status


class StopFileSignals:
    """Turns the signals that ask a run to stop into its stop file, which the run obeys after its step.

    A second Ctrl-C, or a signal before there is anything to save, calls `leave` at once.
    """

    def __init__(self, output: Path, stop: Path, leave: Callable[[], None]) -> None:
        self.output, self.stop, self.leave = output, stop, leave
        self.before = len(read_attempts(output))
        self.asked = self.left = False

    def starts(self) -> list[Attempt]:
        """The starts of the run since this object was made."""
        return read_attempts(self.output)[self.before :]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside this context, the signals come here."""
        handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if (again and number == signal.SIGINT) or not self.starts():
            self.left = True
            self.leave()
            return
        self.stop.touch()
        logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)

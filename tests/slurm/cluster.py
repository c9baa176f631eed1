"""A real Slurm cluster of two nodes inside this machine: munge, slurmctld and two slurmd, all in one temporary folder.

Own configuration, key, sockets, ports, state and spool: an installed Slurm is neither used nor touched. Everything
started here is stopped again, by its process id.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nld_train.signals import die_with_parent

PACKAGES = ("slurm-wlm", "munge")  # Debian's
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
NODES = ("n1", "n2")
PARTITION, URGENT = "batch", "urgent"  # jobs of the second take the nodes from those of the first
START_SECONDS = 60
STOP_SECONDS = 15
INSTALL_SECONDS = 300
SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PlugStackConfig={folder}/plugstack.conf
SelectType=select/linear
TaskPlugin=task/none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=20
KillWait=10
JobRequeue=1
SchedulerParameters=batch_sched_delay=1,sched_interval=2
RebootProgram=/bin/false
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName={partition} Nodes={names} Default=YES MaxTime=UNLIMITED PriorityTier=1 GraceTime=60 State=UP
PartitionName={urgent} Nodes={names} MaxTime=UNLIMITED PriorityTier=2 PreemptMode=OFF State=UP
"""


def why_not() -> str | None:
    """What keeps this machine from running the cluster, once its packages are installed where they can be; or None."""
    if os.geteuid() != 0:
        return "Slurm's test cluster needs root: slurmd starts jobs for users"
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM) is None]
    if missing and shutil.which("apt-get") is None:
        return f"Slurm's test cluster needs {', '.join(missing)}, and there is no apt-get to install {PACKAGES}"
    if missing and not may_install():
        install_them = f"`make test-cluster` installs {' '.join(PACKAGES)} and runs these tests"
        return f"{', '.join(missing)} of Slurm are not here; {install_them}"
    return install() if missing else None


def may_install() -> bool:
    """Whether tests may install Debian's packages on this machine: only in CI, or where `make test-cluster` says so."""
    return os.environ.get("CI") == "true" or os.environ.get("NLD_TEST_CLUSTER") == "1"


def install() -> str | None:
    """Install Debian's packages; what went wrong, or None."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(
                command, env=quiet, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} took longer than {INSTALL_SECONDS} s"
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}"
    return None


@dataclass
class Cluster:
    """A running cluster."""

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SYSTEM}

    def run(self, *command: str, check: bool = True) -> str:
        """stdout of a command on the cluster."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, f"{command} ({done.returncode}): {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job: JobState, Restarts, ExitCode, ..."""
        asks = ("scontrol", "--oneliner", "show", "job", number)
        # One scontrol of hundreds ended without a word, in one CI run; 4,759 more did not (LOG.md, eleventh session).
        said = self.run(*asks, check=False) or self.run(*asks)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def wait(self, number: str, states: Sequence[str], seconds: float) -> str:
        """Wait until a job is in one of these states; which one. Fails loudly in the time given."""
        deadline = time.monotonic() + seconds
        while (state := self.job(number)["JobState"]) not in states:
            assert time.monotonic() < deadline, (
                f"job {number} is {state} after {seconds} s, not {states}\n{self.logs()}"
            )
            time.sleep(0.5)
        return state

    def start(self) -> None:
        self.start_munge()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        deadline = time.monotonic() + START_SECONDS
        while self.run("sinfo", "-h", "-o", "%D %t", check=False).split() != [str(len(NODES)), "idle"]:
            assert time.monotonic() < deadline, f"no idle nodes after {START_SECONDS} s\n{self.logs()}"
            time.sleep(0.3)

    def start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        paths = {"--key-file": key, "--socket": self.folder / "munge.socket", "--pid-file": self.folder / "munge.pid"}
        paths |= {"--log-file": self.folder / "munge.log", "--seed-file": self.folder / "munge.seed"}
        self.start_daemon("munged", "--foreground", "--force", *(f"{name}={path}" for name, path in paths.items()))
        deadline = time.monotonic() + START_SECONDS
        while not (self.folder / "munge.socket").exists():
            assert time.monotonic() < deadline, f"munged opened no socket\n{self.logs()}"
            time.sleep(0.1)

    def start_controller(self) -> None:
        """Also where one was killed: the new one goes on with its jobs."""
        self.start_daemon("slurmctld", "-D")

    def start_node(self, node: str) -> None:
        self.start_daemon("slurmd", "-D", "-N", node, name=node)

    def start_daemon(self, program: str, *options: str, name: str = "") -> None:
        name = name or program
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [program, *options],
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=die_with_parent,  # also where the tests are killed
            )

    def kill(self, name: str) -> None:
        """End a daemon at once."""
        daemon = self.daemons.pop(name)
        end(daemon.pid)
        daemon.wait(STOP_SECONDS)

    def fail_node(self, node: str) -> None:
        """All that runs on a node ends at once, without a word to the controller, as when a machine loses power."""
        tasks = [process for process in self.processes() if f"SLURMD_NODENAME={node}" in environment_of(process)]
        steps = {parent_of(task) for task in tasks} - set(tasks)
        self.kill(node)
        for process in [*(step for step in steps if name_of(step) == "slurmstepd"), *tasks]:
            end(process)

    def stop(self) -> None:
        """Cancel what runs, end every daemon, and then whatever of this cluster is left."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--full", "--user=root", check=False)
            deadline = time.monotonic() + STOP_SECONDS
            while self.run("squeue", "-h", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in [*NODES, "slurmctld", "munged"]:
            if name in self.daemons:
                self.kill(name)
        for process in self.processes():
            end(process)

    def processes(self) -> list[int]:
        """Every process of this cluster, jobs included: their environment names its configuration."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf"
        running = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [process for process in running if mark in environment_of(process)]

    def python_processes(self, word: str) -> list[int]:
        """Those that were started with this word, such as a shard's "1/2" or a run's "output=FOLDER"."""
        words = {process: Path(f"/proc/{process}/cmdline").read_text().split("\0") for process in self.processes()}
        return [process for process, said in words.items() if word in said and said[0].endswith("python")]

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in files)


def environment_of(process: int) -> list[str]:
    """NAME=value of what a process was started with; nothing where it has ended, or is not ours to read."""
    try:
        return Path(f"/proc/{process}/environ").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def name_of(process: int) -> str:
    """Name of a process; "" where it has ended."""
    path = Path(f"/proc/{process}/comm")
    return path.read_text().strip() if path.exists() else ""


def parent_of(process: int) -> int:
    """Process id of the parent; 0 where the process has ended."""
    path = Path(f"/proc/{process}/stat")
    return int(path.read_text().rpartition(")")[2].split()[1]) if path.exists() else 0


def end(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster in `folder`, which should have a short path: sockets are named below it."""
    controller_port, *node_ports = free_ports(1 + len(NODES))
    host = socket.gethostname()
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
        for name, port in zip(NODES, node_ports, strict=True)
    ]
    (folder / "state").mkdir()
    (folder / "plugstack.conf").touch()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host,
            folder=folder,
            controller_port=controller_port,
            nodes="\n".join(nodes),
            names=",".join(NODES),
            partition=PARTITION,
            urgent=URGENT,
        )
    )
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()

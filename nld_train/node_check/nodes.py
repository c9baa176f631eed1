"""A run on several nodes: each node is given the same command, and they meet at one address."""

from collections.abc import Mapping
from dataclasses import dataclass

from nld_train.config import RunConfig, require

# Others wait so long, in seconds, for the first node, which may have a checkpoint to import or conversations to pack.
PATIENCE = 7200
NAMES = "NLD_NODES"  # variable: the nodes' names, in the order of their numbers, with blanks between


@dataclass(frozen=True)
class Nodes:
    """Which of how many nodes this is."""

    count: int = 1
    here: int = 0
    meet: str = ""  # HOST:PORT on the first node; "" on one node alone
    names: tuple[str, ...] = ()  # by number; () where nobody has named them

    @property
    def first(self) -> bool:
        return self.here == 0

    @property
    def host(self) -> str:
        """The first node, where all meet."""
        return self.meet.rpartition(":")[0]

    @property
    def check_port(self) -> int:
        """The port of the check before the start: the next one after that of training."""
        return int(self.meet.rpartition(":")[2]) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        """What the nodes are called in records and messages."""
        return self.names or tuple(f"node {number}" for number in range(self.count))

    def ranks(self, run: RunConfig) -> int:
        """Ranks on each node. Raises: UserError where they cannot be shared out evenly."""
        size = run.parallel.world_size
        require(
            size % self.count == 0,
            f"parallel.world_size={size} on {self.count} nodes",
            f"multiples of {self.count}",
            "change the number of nodes, or parallel.world_size",
        )
        return size // self.count

    @property
    def torchrun_options(self) -> list[str]:
        """How torchrun finds the other nodes; alone, on a free port."""
        if not self.meet:
            return ["--standalone", "--nnodes=1"]
        wait = f"is_host={int(self.first)},read_timeout={PATIENCE},join_timeout={PATIENCE}"
        meeting = ["--rdzv-backend=c10d", "--rdzv-id=nld", f"--rdzv-endpoint={self.meet}", f"--rdzv-conf={wait}"]
        return [f"--nnodes={self.count}", *meeting]


ALONE = Nodes()


def parse_nodes(meet: str | None, count: int | None, here: int | None, environment: Mapping[str, str]) -> Nodes:
    """The nodes that `nld train --meet HOST:PORT --nodes N --node I` names; under srun, Slurm names the last two.

    Raises: UserError.
    """
    if meet is None:
        require(count is None and here is None, "--nodes or --node alone", "them with --meet HOST:PORT", "add it")
        return ALONE
    host, colon, port = meet.rpartition(":")
    well = bool(host and colon) and port.isdigit()
    require(well, f"--meet {meet}", "HOST:PORT", "name the first node and a free port")
    if count is None or here is None:
        slurm = [environment.get(name, "") for name in ("SLURM_NNODES", "SLURM_NODEID")]
        allowed = "--nodes N --node I with it, or srun, which sets SLURM_NNODES and SLURM_NODEID"
        require(all(slurm), f"--meet {meet} alone", allowed, "say how many nodes there are and which this one is")
        count, here = map(int, slurm)
    require(0 <= here < count, f"--node {here} of --nodes {count}", f"0 to {count - 1}", "number the nodes from 0")
    names = tuple(environment.get(NAMES, "").split())
    require(len(names) in (0, count), f"{NAMES} names {len(names)} nodes", f"the {count} nodes, or none", "unset it")
    return Nodes(count, here, meet, names)

"""The nodes of a run: each node is given the same command, and all of them rendezvous at one address."""

from collections.abc import Mapping
from dataclasses import dataclass

from nld_train.config import RunConfig, require

# Seconds that the other nodes wait for the first one, which may have a checkpoint to import or conversations to pack.
PATIENCE = 7200
NAMES = "NLD_NODES"  # variable: the nodes' names in the order of their numbers, separated by blanks


@dataclass(frozen=True)
class Nodes:
    """How many nodes a run has, and which of them this process is on."""

    count: int = 1
    node_rank: int = 0  # number of this node, from 0
    rendezvous_address: str = ""  # HOST:PORT on the first node; "" on one node alone
    names: tuple[str, ...] = ()  # by number; () where nobody has named them

    @property
    def first(self) -> bool:
        return self.node_rank == 0

    @property
    def host(self) -> str:
        """Name of the first node, on which the rendezvous is."""
        return self.rendezvous_address.rpartition(":")[0]

    @property
    def check_port(self) -> int:
        """Port of the rendezvous before the start: the port after the one that training uses."""
        return int(self.rendezvous_address.rpartition(":")[2]) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        """What records and messages call the nodes."""
        return self.names or tuple(f"node {number}" for number in range(self.count))

    def ranks(self, run: RunConfig) -> int:
        """Number of ranks on each node. Raises: UserError where the nodes cannot share them out evenly."""
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
        """Options by which torchrun finds the other nodes; a single node takes a free port of its own."""
        if not self.rendezvous_address:
            return ["--standalone", "--nnodes=1"]
        wait = f"is_host={int(self.first)},read_timeout={PATIENCE},join_timeout={PATIENCE}"
        rendezvous = ["--rdzv-backend=c10d", "--rdzv-id=nld", f"--rdzv-endpoint={self.rendezvous_address}"]
        return [f"--nnodes={self.count}", *rendezvous, f"--rdzv-conf={wait}"]


ALONE = Nodes()


def parse_nodes(address: str | None, count: int | None, node_rank: int | None, environment: Mapping[str, str]) -> Nodes:
    """The nodes that `nld train --meet ADDRESS --nodes COUNT --node NODE_RANK` names.

    Under srun, Slurm's variables give the last two where they are None. Raises: UserError.
    """
    if address is None:
        alone = count is None and node_rank is None
        require(alone, "--nodes or --node alone", "them with --meet HOST:PORT", "add it")
        return ALONE
    host, colon, port = address.rpartition(":")
    well = bool(host and colon) and port.isdigit()
    require(well, f"--meet {address}", "HOST:PORT", "name the first node and a free port")
    if count is None or node_rank is None:
        slurm = [environment.get(name, "") for name in ("SLURM_NNODES", "SLURM_NODEID")]
        allowed = "--nodes N --node I with it, or srun, which sets SLURM_NNODES and SLURM_NODEID"
        require(all(slurm), f"--meet {address} alone", allowed, "say how many nodes there are and which this one is")
        count, node_rank = map(int, slurm)
    in_range = 0 <= node_rank < count
    require(in_range, f"--node {node_rank} of --nodes {count}", f"0 to {count - 1}", "number the nodes from 0")
    names = tuple(environment.get(NAMES, "").split())
    require(len(names) in (0, count), f"{NAMES} names {len(names)} nodes", f"the {count} nodes, or none", "unset it")
    return Nodes(count, node_rank, address, names)

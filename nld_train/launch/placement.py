"""How the ranks of a run are placed on nodes: the same number on each, and a tensor-parallel group never on two."""

from dataclasses import dataclass

from nld_train.config import RunConfig, require

RULE = "the same number of ranks on every node, at most one for each GPU, and no tensor-parallel group on two nodes"


@dataclass(frozen=True)
class Placement:
    nodes: int  # how many
    ranks: int  # on each node


def place_on_nodes(run: RunConfig, nodes: int | None, gpus_per_node: int) -> Placement:
    """Place a run on `nodes` nodes; None: on as few as hold it. gpus_per_node: 0 for CPU nodes.

    Raises: UserError where the ranks do not fit the nodes; it names the nearest number that would do.
    """
    size, tensor = run.parallel.world_size, run.parallel.tensor
    if nodes is None:
        require(gpus_per_node > 0, "CPU nodes without a count", "--nodes N", "say on how many nodes")
        nodes = -(-size // gpus_per_node)
    fits = [count for count in range(1, size + 1) if fits_nodes(size, count, tensor, gpus_per_node)]
    do = "change parallel.world_size or parallel.tensor"
    if fits:
        do = f"give --nodes {min(fits, key=lambda count: (abs(count - nodes), count))}"
    require(
        nodes in fits,
        f"{run.name} on {nodes} node(s): {placement_problem(size, nodes, tensor, gpus_per_node)}",
        RULE,
        do,
    )
    return Placement(nodes, size // nodes)


def fits_nodes(size: int, nodes: int, tensor: int, gpus_per_node: int) -> bool:
    return not placement_problem(size, nodes, tensor, gpus_per_node)


def placement_problem(size: int, nodes: int, tensor: int, gpus_per_node: int) -> str:
    """Why `size` ranks cannot be placed on `nodes` nodes, or "". tensor: ranks of a tensor-parallel group."""
    if nodes < 1 or size % nodes:
        return f"{size} ranks cannot be shared out evenly"
    here = size // nodes
    if gpus_per_node and here > gpus_per_node:
        return f"{here} ranks on a node of {gpus_per_node} GPUs"
    if here % tensor:
        return f"{here} ranks on a node, parallel.tensor={tensor}"
    return ""

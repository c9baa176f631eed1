"""Before a run starts on its nodes: would each of them be refused at the door, is each of them well?"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nld_train.checkpoint_files import saved_step
from nld_train.config import RunConfig
from nld_train.doctor.meeting import Limits, Party, Verdict, meet
from nld_train.doctor.node import Wanted, facts_here
from nld_train.errors import UserError
from nld_train.job_record import UNWELL, record_end, record_start
from nld_train.launch.progress import check_progress
from nld_train.plan.memory import checkpoint_size

logger = logging.getLogger(__name__)
Door = Callable[[RunConfig], None]
GPUS = "NLD_GPUS_PER_NODE"  # variable that the site file sets


def party_of(meet_at: str, count: int, here: int, ranks: int, names: tuple[str, ...]) -> Party:
    """The nodes that meet at HOST:PORT for training, meeting at the next port before it."""
    host, _, port = meet_at.rpartition(":")
    return Party(host, int(port) + 1, count, here, ranks, names)


def wanted_of(run: RunConfig, environment: Mapping[str, str]) -> Wanted:
    """Of the run's nodes: the GPUs that the site file promises, and room for one checkpoint."""
    gpus = environment.get(GPUS, "")
    return Wanted(run.output, checkpoint_size(run).total, int(gpus) if gpus else None)


def examined(run: RunConfig, party: Party, doors: Sequence[Door], limits: Limits | None = None) -> Verdict:
    """What all nodes agree on; every one of them calls this. doors: what this node asks of the run first."""
    wanted = wanted_of(run, os.environ)
    return meet(party, facts_here(wanted, refusal(run, doors)), wanted, limits or Limits())


def refusal(run: RunConfig, doors: Sequence[Door]) -> str:
    """The first refusal at the door, or ""."""
    try:
        for door in doors:
            door(run)
    except UserError as error:
        return str(error)
    return ""


def gather(run: RunConfig, party: Party, doors: Sequence[Door], first_doors: Sequence[Door]) -> int | None:
    """The exit status of a run that does not start, or None. first_doors: what the first node asks beside the others.

    The first node says what is wrong, and puts it into the run's record.
    """
    leads = party.here == 0
    verdict = examined(run, party, [*doors, *first_doors, check_progress] if leads else doors)
    if verdict.well:
        if leads:
            logger.info(well_text(party, verdict))
        return None
    if verdict.refused:
        if leads:
            logger.error("nld: %s", verdict.refused)
        return 2
    if leads:
        for name, problem in verdict.unwell.items():
            logger.error("node %s is not well: %s", name, problem)
        output = Path(run.output)
        output.mkdir(parents=True, exist_ok=True)
        step = saved_step(output)
        record_start(output, step, party.names, os.environ)
        record_end(output, step, UNWELL, verdict.unwell)
    return UNWELL


def examine(run: RunConfig, party: Party, doors: Sequence[Door]) -> tuple[str, int]:
    """The check by itself: what the first node says, "" on the others, and the exit status. Nothing is recorded."""
    verdict = examined(run, party, doors)
    status = 0 if verdict.well else 2 if verdict.refused else UNWELL
    if party.here:
        return "", status
    if verdict.refused:
        return f"{verdict.refused}\n", status
    lines = [f"{name}  {'FAIL  ' + verdict.unwell[name] if name in verdict.unwell else 'ok'}" for name in party.names]
    return "\n".join([*lines, well_text(party, verdict) if verdict.well else "a run would fail", ""]), status


def well_text(party: Party, verdict: Verdict) -> str:
    gpus = f"{verdict.gpus} GPUs each" if verdict.gpus else "no GPUs"
    return (
        f"{party.count} node(s) well: {gpus}, all-reduce of {party.count * party.ranks} ranks right, clocks within "
        f"{verdict.skew:.1f} s ({verdict.seconds:.1f} s)"
    )

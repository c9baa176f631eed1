"""Which objective a run has: chosen once, here, from the sections of its configuration."""

from nld_train.config import RunConfig
from nld_train.objectives.contract import Objective
from nld_train.objectives.drafter import DrafterObjective
from nld_train.objectives.joint import JointObjective
from nld_train.objectives.sampler import SamplerObjective

# The optional sections of RunConfig that say what is trained in place of the joint objective; at most one is set.
SECTION_OBJECTIVES: dict[str, type[Objective]] = {
    objective.section: objective for objective in (DrafterObjective, SamplerObjective)
}


def objective_of(run: RunConfig) -> Objective:
    """The objective of the one optional section that is set; without any, that of the diffusion section."""
    for name, objective in SECTION_OBJECTIVES.items():
        if getattr(run, name) is not None:
            return objective(run)
    return JointObjective(run)

"""`nld doctor`: would a run start here?"""

import argparse
import os
from typing import TYPE_CHECKING

from nld_train import recipe
from nld_train.config import RunConfig
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.doctor.finding import DoctorFinding

DOCTOR_HELP = """\
Check this machine and, with a recipe, everything its run needs, without starting or changing anything.

  nld doctor                                      packages, GPU, Transformer Engine, Slurm, W&B
  nld doctor tiny_stage2_joint                    also: data, tokenizer, init, memory, disk, checkpoints
  nld doctor tiny_stage2_joint --verify           also reads data and checkpoints whole, against their checksums
  nld doctor nld_8b_stage2_joint parallel.world_size=8 --json doctor.json
  nld doctor nld_8b_stage2_joint --rehearse       also tries what one node can, in minutes, before all nodes are taken:
                                                  its ranks by fake process groups, a step's memory on fake tensors, its
                                                  attention kernels compiled for an H100, and a short training at its
                                                  width (two layers), saved and continued
  srun --ntasks-per-node=1 nld doctor nld_8b_stage1_ar --meet $(hostname):29500
                                                  the nodes of an allocation: GPUs, all-reduce, disks, clocks

ok: as it should be.  note: a run starts, but read this.  FAIL: a run would stop there; then the exit status is 1.
"""


def add_doctor_parser(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, and what a recipe needs of it",
        description=DOCTOR_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("recipe", nargs="?", help="recipe name or file (default: the machine alone)")
    doctor.add_argument("override", nargs="*", metavar="key=value", help="settings to change, by dotted key")
    doctor.add_argument("--verify", action="store_true", help="read data and checkpoints whole, against checksums")
    doctor.add_argument("--rehearse", action="store_true", help="also try what one node can of the run; minutes")
    doctor.add_argument("--json", metavar="FILE", help="write the findings there too")
    doctor.add_argument(
        "--meet", metavar="HOST:PORT", help="check the nodes of a run instead, as `nld train --meet` does"
    )
    doctor.add_argument("--nodes", type=int, metavar="N", help="with --meet: how many (default: Slurm's count)")
    doctor.add_argument("--node", type=int, metavar="I", help="with --meet: which this is, from 0 (default: Slurm's)")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    from pathlib import Path

    from nld_train.doctor.examine import machine_findings, run_findings
    from nld_train.doctor.finding import any_fails, findings_json, findings_summary, findings_table
    from nld_train.files import check_output_file, write_text

    if args.json is not None:
        check_output_file(Path(args.json))
    run = None if args.recipe is None else recipe.load_recipe(args.recipe, args.override)
    if args.rehearse and (run is None or args.meet is not None):
        got = "without a recipe" if run is None else "with --meet"
        raise UserError(f"--rehearse {got}", "one node and a recipe", "name the recipe, and leave --meet out")
    if args.rehearse and run is not None and run.sampler is not None:
        do = "leave --rehearse out: the network is small, and a short run tells the rest"
        raise UserError(f"--rehearse of {run.name}, a sampler's run", "the run of a model", do)
    if args.meet is not None:
        return _run_on_nodes(args, run)
    findings = machine_findings(run)
    if run is not None:
        findings += run_findings(run, args.verify)
        findings += _rehearse(run) if args.rehearse else []
    print(f"{findings_table(findings)}\n\n{findings_summary(findings)}")
    if args.json is not None:
        write_text(Path(args.json), findings_json(findings))
    return 1 if any_fails(findings) else 0


def _rehearse(run: RunConfig) -> "list[DoctorFinding]":
    from nld_train.doctor.accelerator import found_gpus
    from nld_train.rehearsal.rehearse import rehearse_run

    return rehearse_run(run, found_gpus())


def _run_on_nodes(args: argparse.Namespace, run: RunConfig | None) -> int:
    from nld_train.node_check.before_start import check_nodes_only
    from nld_train.node_check.nodes import parse_nodes

    if run is None:
        raise UserError("--meet without a recipe", "the recipe whose nodes are checked", "name it")
    said, status = check_nodes_only(run, parse_nodes(args.meet, args.nodes, args.node, os.environ))
    print(said, end="")
    return status

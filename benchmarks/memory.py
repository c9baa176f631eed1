"""The plan's memory beside one step of a rank on fake tensors, for every recipe that is meant for GPUs. No GPU needed.

.venv/bin/python benchmarks/memory.py                            all of them, some 10 minutes of one core
.venv/bin/python benchmarks/memory.py nld_8b_sft nld_3b_drafter  these
"""

import argparse

from nld_train import recipe
from nld_train.rehearsal.memory_table import compare_memory, memory_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", help="default: every recipe named nld_...")
    names = parser.parse_args().recipe or [name for name in recipe.recipe_names() if name.startswith("nld_")]
    runs = [recipe.load_recipe(name, []) for name in names]
    # A sampler's run does not build the model, and its network is given trajectories to know its size.
    print(memory_markdown(compare_memory([run for run in runs if run.sampler is None])))


if __name__ == "__main__":
    main()

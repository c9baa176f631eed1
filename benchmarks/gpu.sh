#!/usr/bin/env bash
# Checks the GPU kernels, measures them, and trains, on one GPU in under 8 minutes; see benchmarks/README.md.
#
#   benchmarks/gpu.sh                     all of it; results under benchmarks/results/
#   benchmarks/gpu.sh --dry-run           the same code at toy size on the CPU
#   PYTHON=.venv/bin/python benchmarks/gpu.sh --only check attention --output out/gpu
#
# Needs Python 3.12 and torch. Nothing need be installed of this project; Transformer Engine and Megatron take part
# where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
  echo "gpu.sh: $python has no torch; give one that has it: PYTHON=.venv/bin/python $0" >&2
  exit 2
fi
exec "$python" benchmarks/gpu.py "$@"

#!/usr/bin/env bash
# Checks the GPU kernels, then measures them, on one GPU in under 8 minutes; see benchmarks/README.md.
#
#   benchmarks/gpu.sh                     all of it; results under benchmarks/results/
#   benchmarks/gpu.sh --dry-run           the same code at toy size on the CPU, under a minute
#   PYTHON=.venv/bin/python benchmarks/gpu.sh --only check attention --output out/gpu
#
# Needs Python 3.12 and torch. Nothing need be installed of this project; Transformer Engine and Megatron take part
# where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"

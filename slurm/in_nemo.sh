#!/bin/bash
# Inside NVIDIA's NeMo container, from the checkout: an environment that uses the image's torch; see docs/cluster.md.
set -euo pipefail
python3 -m venv --system-site-packages .venv-nemo
.venv-nemo/bin/pip install --no-deps --editable .
# The image's own torchrun would start its own Python.
printf '#!%s\nfrom torch.distributed.run import main\n\nmain()\n' "$PWD/.venv-nemo/bin/python" > .venv-nemo/bin/torchrun
chmod +x .venv-nemo/bin/torchrun
.venv-nemo/bin/nld doctor

"""What SGLang needs beside an export, and where it does not read the export's own numbers.

SGLang knows the family by pull request 25803, which was open in November 2026. It has block diffusion alone
(FastDiffuser): linear self-speculation, adapters and decoding left to right are announced for later. It runs on GPUs,
and no test of this project has run it.
"""

import logging
from pathlib import Path

from nld_train.convert.config_json import SpecialTokenIds

logger = logging.getLogger(__name__)
SGLANG_FILE = "sglang_dllm.yaml"
# By architecture, in a table of SGLang's own that wins over config.json.
TABLE = {"mask_token_id": 100, "block_size": 32}
THRESHOLD = 0.9  # published default of block diffusion
TEXT = """\
# For SGLang: --dllm-algorithm FastDiffuser --dllm-algorithm-config {file}
# (pull request 25803, open in November 2026; not run here, because it needs a GPU).
causal_context: true  # the past of a block was trained causally; SGLang's default is false
block_size: {block}
threshold: {threshold}
"""


def write_sglang_config(traits: SpecialTokenIds, target: Path) -> None:
    """Write the file into an export, and warn where SGLang would not use the export's own numbers."""
    for difference in sglang_differences(traits):
        logger.warning("SGLang: %s", difference)
    text = TEXT.format(file=SGLANG_FILE, block=traits.block_size, threshold=THRESHOLD)
    (target / SGLANG_FILE).write_text(text, encoding="utf-8")


def sglang_differences(traits: SpecialTokenIds) -> list[str]:
    """A sentence for each number of a model that SGLang takes from its table instead."""
    sentences = []
    if traits.mask_token_id != TABLE["mask_token_id"]:
        sentences.append(
            f"its table has mask id {TABLE['mask_token_id']}, this model has {traits.mask_token_id}, and nothing "
            "overrides it: do not serve this model there"
        )
    if traits.block_size != TABLE["block_size"]:
        sentences.append(
            f"its table has block {TABLE['block_size']}, this model has {traits.block_size}: {SGLANG_FILE} overrides it"
        )
    return sentences

"""Registers and shared memory of the attention kernels on an H100, compiled for it on any machine with a C compiler.

.venv/bin/python benchmarks/kernels.py      stages 1 and 2 at 4,096 tokens, SFT at 16,384; a minute each
"""

import argparse

from nld_train.rehearsal.attention_kernels import AttentionCase, compile_kernels, kernel_markdown

CASES = [
    AttentionCase(4096, packed=False, dual=False),
    AttentionCase(4096, packed=False),
    AttentionCase(4096, packed=True),
    AttentionCase(16_384, packed=False),
    AttentionCase(16_384, packed=True),
    AttentionCase(16_384, packed=True, heads=8, kv_heads=2),  # tensor 4
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(kernel_markdown([(case, compile_kernels(case)) for case in CASES]))


if __name__ == "__main__":
    main()

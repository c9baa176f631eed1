"""Prompts with references, cut from a folder of texts: to collect a sampler's trajectories, and others to measure with.

  .venv/bin/python benchmarks/sampler_prompts.py out/demo/text --collect 1024 --measure 64 --output out/sampler

Writes OUTPUT/collect.jsonl and OUTPUT/measure.jsonl. A prompt is a line of a text that begins a definition, with the
two lines behind it; its reference is what follows. No text gives prompts to both files.
"""

import argparse
import json
import random
from pathlib import Path

PROMPT_LINES, REFERENCE_CHARACTERS = 3, 400


def cut_prompts(path: Path, generator: random.Random) -> dict | None:
    """One prompt of a text; None where it has no definition with enough behind it."""
    lines = path.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines[:-20]) if line.lstrip().startswith("def ")]
    if not starts:
        return None
    first = generator.choice(starts)
    behind = "".join(lines[first + PROMPT_LINES :])[:REFERENCE_CHARACTERS]
    return {"prompt": "".join(lines[first : first + PROMPT_LINES]), "reference": behind, "id": f"{path}:{first}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--collect", type=int, default=1024)
    parser.add_argument("--measure", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    generator = random.Random(0)
    paths = sorted(path for path in args.folder.rglob("*") if path.is_file())
    generator.shuffle(paths)
    held = len(paths) // 10
    args.output.mkdir(parents=True, exist_ok=True)
    for name, own, count in (("measure", paths[:held], args.measure), ("collect", paths[held:], args.collect)):
        found: dict[str, dict] = {}
        while len(found) < count:
            prompt = cut_prompts(generator.choice(own), generator)
            if prompt is not None:
                found.setdefault(prompt["prompt"], prompt)
        text = "".join(json.dumps(each) + "\n" for each in found.values())
        (args.output / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

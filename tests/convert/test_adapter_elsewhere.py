"""A drafter's adapter in an environment that has only torch, transformers, safetensors and PEFT."""

from pathlib import Path

import pytest

from tests.convert.test_adapter import both, drafter_run  # noqa: F401  (fixtures)
from tests.convert.test_second_environment import environment, run, snippets

pytestmark = pytest.mark.long


def test_the_readmes_snippet_drafts_with_stock_peft(
    both: Path,  # noqa: F811
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The adapter is on in drafting forwards and in no other; the text is greedy AR's."""
    python = environment(tmp_path_factory.mktemp("peft"), ["torch", "transformers", "safetensors", "peft"])
    first, _, peft = snippets(both)
    code = f"""
{first}
greedy, _ = model.ar_generate(prompt, max_new_tokens=16)
plain = type(model).forward
seen = set()
def watched(self, *given, **named):
    drafting = named.get("use_causal_mask") is False and not named.get("use_cache")
    seen.update((drafting, not part.disable_adapters) for part in self.modules() if hasattr(part, "lora_A"))
    return plain(self, *given, **named)
type(model).forward = watched
{peft}
ids, _ = model.linear_spec_generate(prompt, max_new_tokens=16, block_length=8)
print("SAME", torch.equal(ids, greedy), "STATES", sorted(seen))
"""
    shown = run(python, code, both, tmp_path)
    assert "SAME True STATES [(False, False), (True, True)]" in shown

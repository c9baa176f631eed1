"""The oracle's definitions written down a second time: one state at a time, the plain decoders' own forward, no search
that remembers what it found."""

from dataclasses import dataclass, field
from functools import cache as remember

import torch

from nld_train.hf.cache_nemotron_labs_diffusion import KVCache
from nld_train.hf.decoding_nemotron_labs_diffusion import extend_cache, noisy_logits
from nld_train.hf.sampling_nemotron_labs_diffusion import confident_places
from tests.decode.conftest import MASK


def without_masks(prompt: list[int]) -> list[int]:
    """A prompt of masks alone makes every place of a block equal, and rounding alone would then rank them."""
    return [token if token != MASK else 2 for token in prompt]


@dataclass
class SlowBlock:
    """A block of masks behind a text, and its model: ids [B] -> the most probable tokens [B], their probabilities."""

    model: object
    text: list[int]
    length: int
    past: KVCache = field(init=False)
    said: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.past = KVCache(1)
        with torch.no_grad():
            extend_cache(self.model, torch.tensor([self.text]), self.past)
        self.masks = torch.full((self.length,), MASK)

    def says(self, ids):
        key = tuple(ids.tolist())
        if key not in self.said:
            with torch.no_grad():
                probs = noisy_logits(self.model, ids[None], self.past, MASK)[0].softmax(-1)
            self.said[key] = probs.argmax(-1), probs.amax(-1)
        return self.said[key]

    def serial(self):
        """The target [B], by the most confident place each time."""
        ids = self.masks.clone()
        for _ in range(self.length):
            tokens, sure = self.says(ids)
            best = torch.where(ids == MASK, sure, -1.0).argmax()
            ids[best] = tokens[best]
        return ids

    def greedy(self, target, ids=None):
        """(steps, where it ends) of greedy acceptance from ids on."""
        ids = self.masks.clone() if ids is None else ids.clone()
        steps = 0
        while (ids == MASK).any():
            tokens, sure = self.says(ids)
            right = (ids == MASK) & (tokens == target)
            if not right.any():
                right[torch.where(ids == MASK, sure, -1.0).argmax()] = True
            ids, steps = torch.where(right, tokens, ids), steps + 1
        return steps, ids

    def sampler(self, threshold):
        """(steps, where it ends) of the sampler of block diffusion."""
        ids, steps = self.masks.clone(), 0
        while (ids == MASK).any():
            tokens, sure = self.says(ids)
            commit = confident_places(sure[None], (ids == MASK)[None], threshold)[0]
            ids, steps = torch.where(commit, tokens, ids), steps + 1
        return steps, ids

    def compaction(self, target):
        """Steps of compaction of level 1: at every state the longest prefix from which greedy ends in the target, the
        whole tried first, then by bisection; one place is always taken."""
        ids, steps = self.masks.clone(), 0
        while (ids == MASK).any():
            tokens, sure = self.says(ids)
            right = [place for place in range(self.length) if ids[place] == MASK and tokens[place] == target[place]]
            right.sort(key=lambda place: (-sure[place].item(), place))
            low, high, probe = 1, len(right), len(right)
            while low < high:
                tried = ids.clone()
                tried[right[:probe]] = target[right[:probe]]
                low, high = (probe, high) if torch.equal(self.greedy(target, tried)[1], target) else (low, probe - 1)
                probe = (low + high + 1) // 2
            ids[right[:low]] = target[right[:low]]
            steps += 1
        return steps

    def fewest(self, target) -> int:
        """The fewest steps of any order in which the places can be committed: of all ordered partitions into sets that
        hold at their turn only places whose prediction is the target's token."""

        @remember
        def from_places(done: int) -> float:
            filled = torch.tensor([bool(done >> place & 1) for place in range(self.length)])
            if filled.all():
                return 0
            tokens, _ = self.says(torch.where(filled, target, self.masks))
            right = sum(
                1 << place for place in range(self.length) if not filled[place] and tokens[place] == target[place]
            )
            best, chosen = float("inf"), right
            while chosen:  # every set of the right places but the empty one
                best = min(best, 1 + from_places(done | chosen))
                chosen = (chosen - 1) & right
            return best

        return int(from_places(0))

"""Which steps have a gradient norm that stands out."""

from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW = 100  # logged norms that the median is taken over
FEWEST = 20  # of them before anything is judged


class SpikeDetector:
    """Compares gradient norms with the median of those logged last: metrics.jsonl holds them, so that a run which was
    stopped and goes on judges like one that never was."""

    def __init__(self, factor: float, logged: Iterable[float] = ()) -> None:
        self.factor = factor  # times the median; 0: nothing is a spike
        self.norms = deque(logged, maxlen=WINDOW)

    def judge(self, norm: float) -> float | None:
        """The median where `norm` is a spike, else None."""
        before = median(self.norms) if len(self.norms) >= FEWEST else None
        stands_out = before is not None and 0 < self.factor < norm / max(before, 1e-30)
        return before if stands_out else None

    def log(self, norm: float) -> None:
        """Of a logged step, after it was judged."""
        self.norms.append(norm)

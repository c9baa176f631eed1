"""Which steps have a gradient norm that stands out."""

from collections import deque
from collections.abc import Iterable
from statistics import median

WINDOW = 100  # logged norms that the median is taken over
FEWEST = 20  # logged norms before anything is judged


class SpikeDetector:
    """Compares gradient norms with the median of those logged last. metrics.jsonl holds them, so that a run which was
    stopped and goes on judges as if it had never stopped."""

    def __init__(self, factor: float, logged: Iterable[float] = ()) -> None:
        self.factor = factor  # a spike is above so many times the median; 0: nothing is a spike
        self.norms = deque(logged, maxlen=WINDOW)

    def median_if_spike(self, norm: float) -> float | None:
        """The median of the norms before, where `norm` is a spike; None where it is none."""
        before = median(self.norms) if len(self.norms) >= FEWEST else None
        stands_out = before is not None and 0 < self.factor < norm / max(before, 1e-30)
        return before if stands_out else None

    def log(self, norm: float) -> None:
        """Remember the norm of a logged step, once it was judged."""
        self.norms.append(norm)

"""Which steps have a gradient norm that stands out."""

from collections import deque
from statistics import median

WINDOW = 100  # steps the median is taken over
FEWEST = 20  # steps before anything is judged


class Spikes:
    """Compares each gradient norm with the median of the steps before it; after a restart it begins anew."""

    def __init__(self, factor: float) -> None:
        self.factor = factor  # times the median; 0: nothing is a spike
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def judge(self, norm: float) -> float | None:
        """The median before this step where `norm` is a spike, else None."""
        before = median(self.norms) if len(self.norms) >= FEWEST else None
        self.norms.append(norm)
        stands_out = before is not None and 0 < self.factor < norm / max(before, 1e-30)
        return before if stands_out else None

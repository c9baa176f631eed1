"""Shows which kernels take the time of a step, by torch's profiler."""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch.profiler import ProfilerActivity, profile

from nld_train.bench.measure import Alternative, Measurement, Step, free_device_memory

MOST = 8  # kernels that are shown
NAME_CHARACTERS = 60  # a longer kernel name is cut


def profile_lines(alternatives: Sequence[Alternative], result: Measurement | None, device: torch.device) -> list[str]:
    """The profile of one alternative, as lines below its table; no line if the alternative did not run."""
    if result is None or not result.seconds:
        return []
    step = next(one for one in alternatives if one.name == result.name).prepare()
    for _ in range(2):
        step()
    free_device_memory(device)
    return ["", f"{result.name}, one step:", "", *(f"    {line}" for line in _kernel_lines(step, device))]


def _kernel_lines(step: Step, device: torch.device) -> list[str]:
    """The kernels (on the CPU: operators) in which one step spends most time, longest first."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    time = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    events = sorted(seen.key_averages(), key=time, reverse=True)
    total = sum(map(time, events)) or 1
    lines = [
        f"{time(event) / 1e3:9.3f} ms {time(event) / total:6.1%} {event.count:5} x {event.key[:NAME_CHARACTERS]}"
        for event in events[:MOST]
        if time(event)
    ]
    return [f"{total / 1e3:9.3f} ms in all", *lines]

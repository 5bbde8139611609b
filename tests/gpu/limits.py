"""What the machine allows, and how much of the GPU is taken.

Rates are measured with torch by the largest work that is simple: a copy, and a product in bf16.
"""

import threading
import time

import torch

import peer
import shapes

ON_GPU = shapes.DEVICE == "cuda"


def best_seconds(work, times):
    """Shortest of several, after some that warm up."""
    found = []
    for turn in range(times + 3):
        begin = time.perf_counter()
        work()
        if ON_GPU:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found[3:])


def measure():
    """Bytes a second of a copy, read and written ones counted, and operations a second of a product in bf16."""
    size = (2 << 30) if ON_GPU else (16 << 20)
    source = torch.randint(0, 255, (size,), device=shapes.DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = 2 * size / best_seconds(lambda: target.copy_(source), 20)
    side = 8192 if ON_GPU else 256
    a, b = (torch.randn(side, side, device=shapes.DEVICE, dtype=torch.bfloat16) for _ in range(2))
    computed = 2 * side ** 3 / best_seconds(lambda: torch.matmul(a, b), 20)
    del source, target, a, b
    if ON_GPU:
        torch.cuda.empty_cache()
    return {"bytes/s": copied, "operations/s": computed}


def used():
    """Bytes of the GPU that are taken, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return total - free


class Peak:
    """The most that is taken of the GPU during a block, over what was taken before; on a CPU, of one process ever."""

    def __init__(self, before, pid):
        self.before, self.pid, self.bytes, self.stop = before, pid, 0, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while ON_GPU and not self.stop.wait(0.005):
            self.bytes = max(self.bytes, used() - self.before)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        if not ON_GPU:
            self.bytes = peer.peak_bytes(self.pid)

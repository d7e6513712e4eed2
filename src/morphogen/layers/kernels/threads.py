"""One loop over several cores, as many as PyTorch uses."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch


def shared(run: Callable[[int, int], object], count: int, least: int) -> None:
    """run(begin, end) over 0..count in parts of at least `least`, one for each thread of PyTorch.

    run must let go of the interpreter's lock, as a call through ctypes does.
    """
    parts = max(1, min(torch.get_num_threads(), count // max(least, 1)))
    if parts == 1:
        run(0, count)
        return
    first, *others = pairwise(count * part // parts for part in range(parts + 1))
    waiting = [_pool(parts - 1).submit(run, *span) for span in others]
    run(*first)
    for future in waiting:
        future.result()


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="morphogen")


# threads do not live on in the child of a fork
os.register_at_fork(after_in_child=_pool.cache_clear)

"""Items in batches, ahead of their reader, or a few of many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """`map(function, items)` in order, computed on threads a little ahead of its reader.

    Audio files are decoded and resampled outside Python's global lock, so threads are enough, and they need
    neither a copy of the manifest nor a second import of torch.
    """
    remaining = iter(items)
    executor = ThreadPoolExecutor(threads)
    try:
        waiting = deque(executor.submit(function, item) for item in islice(remaining, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(executor.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def evenly_spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """`count` items, evenly spread over all, in their order; all of them for None or too large a count."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def batch_by_length(items: Sequence[Item], length: Callable[[Item], float], limit: float) -> list[list[Item]]:
    """Batches of items, longest first, whose total length stays within `limit` when all are padded to the longest.

    There is at least one item in each batch.
    """
    batches: list[list[Item]] = []
    longest = 0.0
    for item in sorted(items, key=length, reverse=True):
        if batches and longest * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(item)
        else:
            batches.append([item])
            longest = length(item)
    return batches

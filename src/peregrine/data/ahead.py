"""Work that is done ahead of the one who uses it, in threads and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, depth: int | None = None
) -> Iterator[R]:
    """function(item) of each item, in order; at most `depth` results wait (2 a thread by default).

    An error in `function` is raised where its result would come; what has not begun is dropped.
    """
    depth = depth or 2 * threads
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

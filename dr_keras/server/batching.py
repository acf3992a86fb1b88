"""Does what requests that come at the same time want together: embedding their images, searching for their vectors."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items while a batch is being worked on, and takes them as the next: nobody waits for one to fill.

    One thread works, as interpreters are not made for several.

    Args:
        work: takes some items and gives a result for each, in their order; an exception in place of one is raised where
            that item is waited for.
        name: of the thread.
        largest: items at once, at most.
        seen: called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R | Exception]],
        name: str,
        largest: int,
        seen: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._work_on = work
        self._seen = seen
        self._largest = largest
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(1, name)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to work, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    @property
    def working(self) -> bool:
        """Whether items that come now will be worked on."""
        return self._task is not None and not self._task.done() and not self._stopping

    async def stop(self) -> None:
        """Works on what waits, and ends."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def do(self, item: T) -> R:
        """The result of one item."""
        if not self.working:
            raise RuntimeError("the batcher is not running; call start first")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._wake.set()
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = [one for one in self._waiting[: self._largest] if not one[1].done()]  # a client may have gone
            del self._waiting[: self._largest]
            if not batch:
                continue
            self._seen(len(batch))
            results: Sequence[R | Exception]
            try:
                results = await loop.run_in_executor(self._pool, self._work_on, [item for item, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

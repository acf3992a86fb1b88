"""Batches the work of simultaneous requests: embedding their images and searching for their vectors."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Collects items while a batch is processed; they form the next batch. No item waits for a batch to fill.

    Batches are processed in one thread, as LiteRT's interpreters are not thread-safe.

    Args:
        work: Takes a batch and returns a result for each item, in order. An exception in place of a result is raised
            for that item only.
        name: The name of the thread.
        max_items: The largest size of a batch.
        on_batch: Called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R | Exception]],
        name: str,
        max_items: int,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._work_on = work
        self._on_batch = on_batch
        self._max_items = max_items
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(1, name)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts processing in the running event loop."""
        self._task = asyncio.create_task(self._work())

    @property
    def working(self) -> bool:
        """Whether new items will be processed."""
        return self._task is not None and not self._task.done() and not self._stopping

    async def stop(self) -> None:
        """Processes the items that are waiting, then stops."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def do(self, item: T) -> R:
        """Processes one item.

        Args:
            item: The item.

        Returns:
            Its result.

        Raises:
            RuntimeError: The batcher is not running.
        """
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
            batch = [one for one in self._waiting[: self._max_items] if not one[1].done()]  # the client is gone
            del self._waiting[: self._max_items]
            if not batch:
                continue
            self._on_batch(len(batch))
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

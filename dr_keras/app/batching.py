"""Embeds the images of requests that come at the same time together."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

LARGEST = 32  # images at once; of LiteRT's time on a CPU hardly anything is saved beyond


class Batcher:
    """Collects images while a batch is being embedded, and embeds them as the next: nobody waits for one to fill.

    One thread embeds, as interpreters are not made for several.

    Args:
        embed: (N, H, W, 3) uint8 -> (N, D) float32.
        seen: called with the size of each batch.
        largest: images at once, at most.
    """

    def __init__(
        self,
        embed: Callable[[np.ndarray], np.ndarray],
        seen: Callable[[int], object] = lambda _: None,
        largest: int = LARGEST,
    ) -> None:
        self._embed = embed
        self._seen = seen
        self._largest = largest
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(1, "embed")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to work, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    @property
    def working(self) -> bool:
        """Whether images that come now will be embedded."""
        return self._task is not None and not self._task.done() and not self._stopping

    async def stop(self) -> None:
        """Embeds what waits, and ends."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._pool.shutdown()

    async def embed(self, pixels: np.ndarray) -> np.ndarray:
        """The vector (D,) of one image (H, W, 3) uint8."""
        if not self.working:
            raise RuntimeError("the batcher is not running; call start first")
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
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
            try:
                vectors = await loop.run_in_executor(self._pool, self._embed, np.stack([image for image, _ in batch]))
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)

"""The work of the routes with the model and the index, in threads beside the event loop."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials
from starlette.responses import Response

from dr_keras.data.crop import Crop, cropped
from dr_keras.data.exif import FACTS
from dr_keras.data.images import decode, facts
from dr_keras.data.parts import decode_parts
from dr_keras.errors import ImageError, InputError, RunError
from dr_keras.index.sync import Reader
from dr_keras.lru import LRUCache
from dr_keras.runtimes import threads
from dr_keras.search_model import Model
from dr_keras.search_results import Answer, Result
from dr_keras.server.batching import Batcher
from dr_keras.server.errors import Problem, busy
from dr_keras.server.image_files import CACHE_BYTES, MAX_THUMBNAIL_PIXELS, Format, Opened, Thumbnails, examine
from dr_keras.server.judging import JudgmentFile
from dr_keras.server.live_index import Embedding, LiveIndex
from dr_keras.server.peers import Peers
from dr_keras.server.prometheus import Metrics
from dr_keras.server.queries import Query, Vector
from dr_keras.server.requests import Upload, path_id, read_search, read_upload
from dr_keras.server.responses import FileResponse, matches_etag, requested_range
from dr_keras.server.schemas import Judgment, SearchRequest
from dr_keras.server.settings import Settings
from dr_keras.variety import Variety

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")

EMBED_BATCH_IMAGES = 16  # while one batch is embedded, the requests of another are searched, answered and read
SEARCH_BATCH_QUERIES = 16  # as many
READER_THREADS = 4  # the index serves one at a time; another may be busy with a map
CACHED_VECTORS = 256  # of uploaded images: whoever changes a filter sends the same image again
REFRESH_SECONDS = 10.0  # after this an idle server releases an old state, so that the writer's log does not grow
PAIR_DIGITS, PAIRED_SIDE = 6, 16  # of the pairs of an explanation: decimal places, and parts in each direction
IMAGE_CACHE_CONTROL = "private, max-age=300"  # an image may be replaced; five minutes are enough for scrolling back


class Service:
    """What the routes share.

    Args:
        model: A model with an index, as `dr_keras.load` returns it.
        settings: The settings.
        peers: The workers of the server.
    """

    def __init__(self, model: Model, settings: Settings, peers: Peers) -> None:
        self.settings = settings
        self.peers = peers
        self.metrics = Metrics(peers)
        self.live_index = LiveIndex(model, settings.uploads if settings.writable else None, peers)
        if not settings.metadata:
            model.index.withhold(FACTS)
        self.thumbnails = Thumbnails(CACHE_BYTES // peers.count)
        self.embedder: Batcher[tuple[Reader, np.ndarray], np.ndarray] = Batcher(
            embed_each, "embed", EMBED_BATCH_IMAGES, self.metrics.batches.observe
        )
        self.searcher: Batcher[tuple[Query, int], Answer] = Batcher(
            self.live_index.search_many, "search", SEARCH_BATCH_QUERIES
        )
        self._vectors: LRUCache[bytes, Vector] = LRUCache(CACHED_VECTORS)
        self._decoders = ThreadPoolExecutor(threads(), "decode")
        self._readers = ThreadPoolExecutor(READER_THREADS, "read")
        self._writer = ThreadPoolExecutor(1, "write")
        self._networks = ThreadPoolExecutor(1, "network")  # explanations and parts take long; thumbnails must not wait

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Runs the threads while the server runs."""
        if self.live_index.uploads is not None:
            self.live_index.uploads.mkdir(parents=True, exist_ok=True)
        self.embedder.start()
        self.searcher.start()
        reader = self.live_index.embedding.reader
        await self.embedder.do((reader, np.zeros((reader.size, reader.size, 3), np.uint8)))  # loads the network
        refresher = asyncio.create_task(self._refresh())
        self.peers.check(True)
        try:
            yield
        finally:
            refresher.cancel()
            with suppress(asyncio.CancelledError):
                await refresher
            self.peers.check(False)
            await self.embedder.stop()
            await self.searcher.stop()
            for pool in (self._decoders, self._readers, self._writer, self._networks):
                pool.shutdown()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            with suppress(Problem):
                await self._check()

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that reads the index, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def write(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that writes, outside the event loop; one at a time, by all workers of the server."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.peers.in_turn, function, *arguments)

    async def ready(self) -> None:
        """Checks that the server can search.

        Raises:
            Problem: 503 if it cannot.
        """
        await self._check()
        if not self.peers.others_able():
            raise busy("another worker of this server cannot search yet")

    async def _check(self) -> None:
        """`ready`, for this worker alone."""
        if not (self.embedder.working and self.searcher.working):
            raise busy("the network is not loaded")
        try:
            await self.read(self.live_index.refresh)
            self.peers.check(True)
        except RunError as error:
            self.peers.check(False)
            log.error("%s", error)
            raise busy("the index cannot be read; the server's log says why", seconds=10) from None

    def authorize(self, credentials: HTTPAuthorizationCredentials | None) -> None:
        """Checks that a client may change the index.

        Args:
            credentials: The bearer token that it sent, or None.

        Raises:
            Problem: 403 if the server is read-only, 401 if the token is missing or wrong.
        """
        if not self.settings.writable or self.settings.token is None:
            raise Problem(403, "this server takes no changes; it was started without --writable")
        given = credentials.credentials.strip() if credentials else ""
        # The time of the comparison does not depend on how much of the token is right.
        if not hmac.compare_digest(given.encode(errors="replace"), self.settings.token.encode()):
            raise Problem(
                401,
                "a token is needed: send Authorization: Bearer TOKEN",
                {"WWW-Authenticate": 'Bearer realm="dr_keras"'},
            )

    async def query(self, request: Request, crop: str | None) -> Query:
        """Reads a search from a request, and embeds its images.

        Args:
            request: The request.
            crop: The part of its only image to search for, as text, or None.

        Raises:
            Problem: The request is not a search, or one of its images cannot be used.
        """
        return await self._embed_query(*await read_search(request), _crop(crop))

    async def search(self, query: Query, k: int) -> Answer:
        """Finds the `k` images nearest to a query."""
        if query.where or query.variety:  # they take time, and the other searches of a batch would have to wait
            return await self.read(self.live_index.search, query, k)
        return await self.searcher.do((query, k))

    async def _embed_query(self, search: SearchRequest, images: list[bytes], crop: Crop | None) -> Query:
        asked = len(images) + len(search.positives) + len(search.negatives)
        if crop and (asked != 1 or search.negatives):
            raise Problem(422, f"a crop is a part of a single query; {asked} images were given")
        examined = await asyncio.gather(*(self._examine(data, crop) for data in images))
        part = examined[0][1] if examined else await self._part(search.positives[0], crop) if crop else None
        return Query(
            [vector for _, vector in examined],
            search.positives,
            search.negatives,
            search.where,
            search.max_distance,
            search.include_self,
            search.whole,
            Variety(search.distinct, search.diverse),
            crop,
            part if crop else None,
        )

    async def _part(self, name: str, crop: Crop) -> Vector:
        """The vector of a part of an image of the index."""
        opened = await self._open((await self.read(self.live_index.find, name)).id)
        try:
            data = await self._decoding(opened.content)
        finally:
            opened.close()
        return (await self._examine(data, crop))[1]

    async def _examine(self, data: bytes, crop: Crop | None = None) -> tuple[Format, Vector]:
        """The format of an image, and the vector of it or of its part.

        Raises:
            Problem: It is not an image, or too large.
        """
        embedding = self.live_index.embedding
        format, digest, found = await self._decoding(self._known_or_decoded, data, crop, embedding)
        if isinstance(found, Vector):
            return format, found
        values = await self.embedder.do((embedding.reader, found))
        vector = Vector(values.copy(), embedding.model)  # a view would keep the whole batch in memory
        self._vectors.put(digest, vector)
        return format, vector

    def _known_or_decoded(
        self, data: bytes, crop: Crop | None, embedding: Embedding
    ) -> tuple[Format, bytes, Vector | np.ndarray]:
        """The format of an image, the key of its vector, and that vector if it is known, or else the decoded image.

        In one call, because each wait for a thread costs a request as much as decoding a small image.

        Raises:
            Problem: It is not an image, or too large.
        """
        format = examine(data, self.settings.pixels)
        digest = hashlib.sha256(data).digest() + f"{crop or ''} {embedding.model}".encode(errors="replace")
        vector = self._vectors.get(digest)
        if vector is not None:
            return format, digest, vector
        try:
            image = cropped(data, crop) if crop else data
            return format, digest, decode(image, embedding.reader.size, embedding.reader.resize)
        except ImageError as error:
            raise Problem(415, f"the image {error}") from None
        except InputError as error:
            raise Problem(422, str(error)) from None

    async def _with_parts(self, image: bytes) -> Vector:
        """The vectors (1 + P, D) of an image that was examined, and of its parts."""
        embedding = self.live_index.embedding
        reader = embedding.reader
        try:
            pixels, _ = await self._decoding(decode_parts, image, reader.size, reader.resize, reader.parts)
        except ImageError as error:
            raise Problem(415, f"the image {error}") from None
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self._networks, reader.vectors, pixels[None])
        return Vector(vectors[0], embedding.model)

    async def _facts(self, image: bytes) -> dict[str, Any]:
        """What an image says of itself, see `dr_keras.data.exif`."""
        return await self._decoding(facts, image)

    async def _decoding(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function, *arguments)

    async def image(self, request: Request, side: int | None) -> Response:
        """Answers with an image's file, or with a thumbnail.

        Args:
            request: The request; its path names the image.
            side: Pixels of the thumbnail's longer side, or None for the file.

        Raises:
            Problem: There is no such image, or its file cannot be served.
        """
        if side is None and not self.settings.metadata:
            side = MAX_THUMBNAIL_PIXELS
        opened = await self._open(path_id(request))
        with ExitStack() as owned:
            owned.callback(opened.close)
            etag = opened.etag if side is None else f'{opened.etag[:-1]}-{side}"'
            headers = {"ETag": etag, "Cache-Control": IMAGE_CACHE_CONTROL}
            if matches_etag(request, etag):
                return Response(status_code=304, headers=headers)
            if side is None:
                response = FileResponse(opened, self._decoders, headers, requested_range(request, etag, opened.size))
                owned.pop_all()  # the response closes the file
                return response
            thumbnail = await self._decoding(self.thumbnails.get, opened, side)
        return Response(thumbnail, media_type="image/jpeg", headers=headers)

    async def _open(self, id: str) -> Opened:
        """`LiveIndex.open_image` in a thread. If the request is canceled meanwhile, the file is closed."""
        opening = self._decoders.submit(self.live_index.open_image, id)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise

    async def explain(self, query: str, neighbor: str, *, pairs: bool) -> dict[str, Any]:
        """Explains why two images of the index are alike, as in `dr_keras.server.schemas.Explanation`.

        Args:
            query, neighbor: Their ids or unique base names.
            pairs: Whether to include the pairs of parts, which are many.

        Raises:
            Problem: There is no such image, or its file cannot be used.
        """
        ids = [(await self.read(self.live_index.find, name)).id for name in (query, neighbor)]
        reader = self.live_index.embedding.reader
        one, other = [await self._pixels(id, reader) for id in ids]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._networks, self.live_index.explain, one, other)
        several = found.pooled_pairs(PAIRED_SIDE) if pairs else None
        about = {"query": ids[0], "neighbor": ids[1], "resize": reader.resize}
        return about | found.to_dict() | {"pairs": None if several is None else several.round(PAIR_DIGITS).tolist()}

    async def _pixels(self, id: str, reader: Reader) -> np.ndarray:
        """The pixels of an image of the index, as the network sees them."""
        opened = await self._open(id)
        try:
            return await self._decoding(decode, await self._decoding(opened.content), reader.size, reader.resize)
        except ImageError as error:
            raise Problem(415, f"the image {error}") from None
        finally:
            opened.close()

    async def judge(self, judgment: Judgment, file: JudgmentFile) -> int:
        """Keeps a judgment about three images of the index.

        Args:
            judgment: The judgment.
            file: Where to.

        Returns:
            The number of judgments in the file.

        Raises:
            Problem: 404 if the index has not all three images, 422 if they are not three, 507 if the file cannot be
                written.
        """
        ids = (judgment.query, judgment.positive, judgment.negative)
        if len(set(ids)) < 3:
            raise Problem(422, "a judgment is about three different images")
        if any("\udc80" <= character <= "\udcff" for id in ids for character in id):
            raise Problem(422, "an id is not UTF-8, which the file is in")
        if any(id != id.strip() for id in ids):
            raise Problem(422, "an id begins or ends with a space, which the file cannot hold")
        for id in ids:
            await self.read(self.live_index.has, id)
        try:
            return await self.write(file.append, *ids)
        except OSError as error:
            log.error("%s", error)
            raise Problem(507, "the judgment could not be written; the server's log says why") from None

    async def add(self, request: Request) -> tuple[Result, bool]:
        """Adds an uploaded image to the index.

        Args:
            request: The request.

        Returns:
            The image, and whether it is new to the index.

        Raises:
            Problem: The request is wrong, or the image cannot be added.
        """
        upload = await read_upload(request)
        format, vector = await self._examine(upload.image)
        if self.live_index.embedding.reader.parts:
            vector = await self._with_parts(upload.image)
        wanted = self.settings.metadata and self.live_index.index.exif
        about = Upload(upload.image, upload.label, upload.attributes, await self._facts(upload.image) if wanted else {})
        try:
            return await self.write(self.live_index.add, about, format, vector)
        except RunError:
            raise
        except InputError as error:  # its message names the image by its id, which may be a path on this machine
            log.error("%s", error)
            raise Problem(422, "the image cannot be added; the server's log says why") from None


def embed_each(images: Sequence[tuple[Reader, np.ndarray]]) -> list[np.ndarray]:
    """Embeds images (H, W, 3) uint8, those of each reader together; returns a vector (D,) for each."""
    vectors: dict[int, np.ndarray] = {}
    for reader in {id(reader): reader for reader, _ in images}.values():
        own = [number for number, (one, _) in enumerate(images) if one is reader]
        vectors |= zip(own, reader.embed(np.stack([images[number][1] for number in own])), strict=True)
    return [vectors[number] for number in range(len(images))]


def _crop(text: str | None) -> Crop | None:
    """A crop as a client sends it."""
    try:
        return None if text is None else Crop.of(text)
    except InputError as error:
        raise Problem(422, str(error)) from None


def _close_unused(opening: "Future[Opened]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()

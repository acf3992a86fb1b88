"""A cache that evicts the least recently used values."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Keeps values up to a total size. Its methods may be called from several threads.

    Args:
        limit: The maximum total size. The value added last is kept even if it alone exceeds the limit.
        size_of: The size of a value; by default each counts as one.

    Example:
        >>> cache = LRUCache[str, bytes](limit=4, size_of=len)
        >>> cache.put("a", b"12")
        >>> cache.put("b", b"34")
        >>> cache.get("a")
        b'12'
        >>> cache.put("c", b"56")
        >>> print(cache.get("b"), len(cache), cache.size)
        None 2 4
    """

    def __init__(self, limit: int, size_of: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size_of = size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._size = 0
        self._guard = threading.Lock()

    def get(self, key: K) -> V | None:
        """Returns the value of a key, or None."""
        with self._guard:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> None:
        """Stores a value, replacing any previous value of the key."""
        with self._guard:
            if key in self._values:
                self._size -= self._size_of(self._values.pop(key))
            self._values[key] = value
            self._size += self._size_of(value)
            while self._size > self._limit and len(self._values) > 1:
                self._size -= self._size_of(self._values.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._values)

    @property
    def size(self) -> int:
        """The total size of the stored values."""
        return self._size

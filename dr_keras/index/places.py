"""Where an index is: a folder, or the address of a collection of a Milvus server."""

import os

MILVUS = "milvus://"


def is_milvus(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address such as milvus://HOST:PORT/COLLECTION.

    Example:
        >>> is_milvus("milvus://localhost:19530/photos"), is_milvus("my-index")
        (True, False)
    """
    return os.fspath(place).startswith(MILVUS)

"""A Milvus server: its address, and calls whose errors are one line each."""

import logging
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dr_keras.errors import InputError, MissingPackage, RunError, Unavailable
from dr_keras.extras import how_to_install
from dr_keras.index.places import MILVUS

if TYPE_CHECKING:
    pass

PORT = 19530
OLDEST = (2, 3)
TOKEN, TLS, CA_FILE = "DR_KERAS_MILVUS_TOKEN", "DR_KERAS_MILVUS_TLS", "DR_KERAS_MILVUS_CA"  # environment variables
SECONDS = 4.0  # for a call that reads, so that a person knows within five seconds that a server does not answer
WRITE_SECONDS = 60.0  # for a call that writes, which a busy server may delay
MESSAGE_CHARACTERS = 200  # of an error of the server

# What the messages of a server say that is not there, is starting, or does not answer.
_AWAY = (
    "unavailable",
    "deadline",
    "timeout",
    "timed out",
    "failed to connect",
    "fail connecting",
    "connection refused",
    "not ready",
    "not healthy",
    "abnormal",
    "initializing",
    "service not",
    "node not",
    "no available",
    "not fully loaded",
    "not loaded",
    "retry",
    "channel closed",
    "closed channel",
    "context canceled",
    "node offline",
    "not serving",
    "not found in target",
)

_WRITES: Counter[str] = Counter()  # by address: changes that this process has made, which all its indexes must see


@dataclass(frozen=True)
class Address:
    """The address of an index in Milvus.

    Attributes:
        host, port: Of the server.
        collection: The name of the index there, which is an alias of a collection.
    """

    host: str
    port: int
    collection: str

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> "Address":
        """Reads an address.

        Raises:
            InputError: It is not one.

        Example:
            >>> Address.of("milvus://localhost/photos")
            Address(host='localhost', port=19530, collection='photos')
            >>> str(Address.of("milvus://[::1]:19531/photos"))
            'milvus://[::1]:19531/photos'
        """
        text = os.fspath(place).removeprefix(MILVUS)
        found = re.fullmatch(
            r"(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?/(?P<name>[A-Za-z_]\w*)",
            text,
            re.ASCII,
        )
        if found is None or "@" in text:
            shown = f"{MILVUS}...@..." if "@" in text else place  # it may hold a password
            raise InputError(
                f"{shown} is no index in Milvus; give milvus://HOST:PORT/COLLECTION, with letters, digits and _ in its "
                f"name, and a token in {TOKEN}"
            )
        return cls(found["host"], int(found["port"] or PORT), found["name"])

    def beside(self, ending: str) -> "Address":
        """The address of another index on the same server, whose name ends in `ending`."""
        return Address(self.host, self.port, self.collection + ending)

    def __str__(self) -> str:
        return f"{MILVUS}{self.host}:{self.port}/{self.collection}"


class Server:
    """The server of an index.

    Args:
        address: The address of the index.

    Raises:
        MissingPackage: Pymilvus is not installed.
        RunError: The server cannot be reached, or is too old.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise MissingPackage(
                f"an index in Milvus needs {error.name}, which is not installed; {how_to_install('pymilvus')}"
            ) from None
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # it logs the errors that `call` raises
        self._errors = MilvusException
        options: dict[str, Any] = {"token": os.environ.get(TOKEN, "")}
        secure = os.environ.get(TLS, "").lower() in ("1", "true", "yes") or CA_FILE in os.environ
        if CA_FILE in os.environ:
            options["server_pem_path"] = os.environ[CA_FILE]
        scheme = "https" if secure else "http"
        try:
            self._client: MilvusClient | None = MilvusClient(
                f"{scheme}://{address.host}:{address.port}", timeout=SECONDS, **options
            )
        except Exception as error:  # pymilvus and gRPC raise many kinds, also for a certificate that cannot be read
            raise self._told(error) from None
        version = str(self.call("get_server_version"))
        known = re.match(r"v?([0-9]+)\.([0-9]+)", version)
        if known and (int(known[1]), int(known[2])) < OLDEST:
            self.close()
            raise RunError(f"{address} is a server of Milvus {version}; {OLDEST[0]}.{OLDEST[1]} or newer is needed")

    def call(self, name: str, *arguments: Any, timeout: float = SECONDS, **named: Any) -> Any:
        """Calls a method of pymilvus's client.

        Args:
            name: Its name.
            timeout: Seconds after which it fails.

        Raises:
            Unavailable: The server cannot be reached, or does not answer in time.
            RunError: It refuses.
        """
        client = self._client
        if client is None:
            raise RunError(f"{self.address} is closed; open it again")
        try:
            return getattr(client, name)(*arguments, timeout=timeout, **named)
        except Exception as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> RunError:
        """An error of pymilvus or gRPC as a line."""
        details = getattr(error, "details", None)  # of gRPC
        text = details() if callable(details) else getattr(error, "message", None)
        text = " ".join(str(text or error).split())
        code = getattr(error, "compatible_code", getattr(error, "code", None))
        where = f"the Milvus server {self.address.host}:{self.address.port}"
        low = text.lower()
        if "token" in low or "auth" in low or "credential" in low or "permission" in low:
            return RunError(f"{where} refuses: {_without_secret(text)}; a token is read from {TOKEN}")
        if "space left" in low or "quota exceeded" in low or "disk" in low or "memory limit" in low:
            return RunError(f"{where} takes no more: {_short(text)}")
        if "illegal connection params" in low:  # whatever the reason is
            if not self._listens():
                return Unavailable(f"{where} cannot be reached")
            return Unavailable(
                f"{where} does not answer as Milvus does: it may be starting, or want a token ({TOKEN}) or TLS ({TLS})"
            )
        if any(sign in low for sign in _AWAY) or callable(code):
            return Unavailable(f"{where} cannot be used at the moment: {_short(text)}")
        return RunError(f"{self.address} cannot be used: {_short(text)}")

    def _listens(self) -> bool:
        """Whether anything listens at the address."""
        try:
            socket.create_connection((self.address.host.strip("[]"), self.address.port), timeout=1).close()
        except OSError:
            return False
        return True

    def wrote(self) -> None:
        """Tells that this process has changed what the server holds."""
        _WRITES[f"{self.address.host}:{self.address.port}"] += 1

    @property
    def writes(self) -> int:
        """How many changes this process has made to what the server holds."""
        return _WRITES[f"{self.address.host}:{self.address.port}"]

    def close(self) -> None:
        """Ends the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _short(text: str) -> str:
    text = _without_secret(text)
    return text if len(text) <= MESSAGE_CHARACTERS else text[:MESSAGE_CHARACTERS].rstrip() + " ..."


def _without_secret(text: str) -> str:
    secret = os.environ.get(TOKEN)
    return text.replace(secret, "...") if secret else text

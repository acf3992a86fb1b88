#!/usr/bin/env python3
"""Gives Milvus's user root the password that $DR_KERAS_MILVUS_TOKEN names, in place of the one of a new server.

DR_KERAS_MILVUS_TOKEN=root:PASSWORD milvus-password http://milvus:19530

It does nothing if the server knows that password already.
"""

import logging
import os
import sys
import time

from pymilvus import MilvusClient

NEW_SERVER = "Milvus"  # the password of root on a new server
WAIT_SECONDS = 120.0


def accepts(address: str, password: str) -> bool:
    """Whether the server at `address` lets root in with this password."""
    try:
        client = MilvusClient(address, token=f"root:{password}", timeout=5)
        client.list_collections()
        client.close()
    except Exception:  # pymilvus and gRPC raise many kinds; a wrong password looks like an absent server
        return False
    return True


def main(address: str) -> None:
    """Sets the password on the server at `address`, which may still be starting."""
    user, _, password = os.environ.get("DR_KERAS_MILVUS_TOKEN", "").partition(":")
    if user != "root" or len(password) < 6:
        sys.exit("DR_KERAS_MILVUS_TOKEN is expected to be root:PASSWORD, with a password of at least 6 characters")
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if accepts(address, password):
            return
        if accepts(address, NEW_SERVER):
            client = MilvusClient(address, token=f"root:{NEW_SERVER}", timeout=5)
            client.update_password("root", NEW_SERVER, password)
            client.close()
        time.sleep(1)
    sys.exit(f"{address} knows neither this password nor that of a new server, or cannot be reached")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} http://HOST:PORT")
    main(sys.argv[1])

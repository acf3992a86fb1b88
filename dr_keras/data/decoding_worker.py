"""The child process of `dr_keras.data.decoding.decode_files`.

It reads a JSON object from standard input: `size`, `resize`, `facts`, `parts`, and `blocks`, which are lists of files.
For each block it writes to standard output a line of JSON, {"failures": {row within the block: reason}, "facts": {row:
facts}}, and then the pixels, (n, size, size, 3) or (n, 1 + P, size, size, 3) bytes.
"""

import json
import signal
import sys

from dr_keras.data.decoding import decode_block


def main() -> None:
    """Handles the request on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which closes the pipe
    request = json.load(sys.stdin.buffer)
    out = sys.stdout.buffer
    for files in request["blocks"]:
        block = decode_block(files, *(request[name] for name in ("size", "resize", "facts", "parts")))
        try:
            out.write(json.dumps({"failures": block.failures, "facts": block.facts}).encode() + b"\n")
            out.write(block.pixels.data)
            out.flush()
        except OSError:  # the parent is gone: EPIPE, or EINVAL on Windows
            sys.stdout = None
            return


if __name__ == "__main__":
    main()

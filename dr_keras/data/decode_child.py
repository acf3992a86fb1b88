"""The child process of `dr_keras.data.pixels.decode_files`: decodes blocks of files, each with the one decoder.

Reads from standard input a JSON object: `files`, `size`, `resize`, and `blocks`, a list of [start, stop]. For each
block it writes to standard output a line of JSON, {"failures": {row: reason}}, and the pixels of the block,
(stop - start, size, size, 3) bytes.
"""

import json
import signal
import sys

from dr_keras.data.pixels import decode_block


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes the pipe
    request = json.load(sys.stdin.buffer)
    out = sys.stdout.buffer
    for start, stop in request["blocks"]:
        pixels, failures = decode_block(request["files"][start:stop], request["size"], request["resize"])
        failures = {start + row: reason for row, reason in failures.items()}
        try:
            out.write(json.dumps({"failures": failures}).encode() + b"\n")
            out.write(pixels.data)
            out.flush()
        except BrokenPipeError:  # the parent has gone
            sys.stdout = None
            return


if __name__ == "__main__":
    main()

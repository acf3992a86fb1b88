"""The child process of `dr_keras.data.decoding.decode_files`: decodes blocks of files, each with the one decoder.

Reads from standard input a JSON object: `size`, `resize`, and `blocks`, lists of files. For each block it writes to
standard output a line of JSON, {"failures": {row within the block: reason}}, and the pixels of the block, (n, size,
size, 3) bytes.
"""

import json
import signal
import sys

from dr_keras.data.decoding import decode_block


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes the pipe
    request = json.load(sys.stdin.buffer)
    out = sys.stdout.buffer
    for files in request["blocks"]:
        pixels, failures = decode_block(files, request["size"], request["resize"])
        try:
            out.write(json.dumps({"failures": failures}).encode() + b"\n")
            out.write(pixels.data)
            out.flush()
        except BrokenPipeError:  # the parent has gone
            sys.stdout = None
            return


if __name__ == "__main__":
    main()

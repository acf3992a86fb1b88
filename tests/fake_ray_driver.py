"""Stands in for the driver in tests without Ray: works on blocks itself. Blocks with numbers in LOST never come back.

Environment: LOST, numbers; DIES, a number that ends this process once, which leaves a file in the folder MARKS; SILENT,
not to answer at all.
"""

import os
import pickle
import sys
import time
from pathlib import Path

from dr_keras.ray_jobs.messages import Failed, Ready, Result, Round, Status, receive, send


def main() -> None:
    lost = set(map(int, os.environ.get("LOST", "").split()))
    dies = os.environ.get("DIES")
    out = sys.stdout.buffer
    job = receive(sys.stdin.buffer)
    if "SILENT" in os.environ:
        while True:
            send(out, Status("1 of 3 machines"))
            time.sleep(0.1)
    if job.address == "nowhere:1":
        send(out, Failed("RunError", "there is no Ray to use at nowhere:1"))
        return
    do = job.work.start(1)
    send(out, Ready(2))
    while isinstance(order := receive(sys.stdin.buffer), Round):
        for number, block in order.blocks:
            items = pickle.loads(block)
            if dies and int(dies) in items and _marked(dies):
                os._exit(3)
            if not lost.isdisjoint(items):
                continue
            try:
                value = do(items)
            except ValueError as error:
                value = Failed(type(error).__name__, str(error))
            send(out, Result(number, pickle.dumps(value), 0.01 * len(items)))
        send(out, Ready(2))


def _marked(number: str) -> bool:
    try:
        (Path(os.environ["MARKS"]) / number).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    main()

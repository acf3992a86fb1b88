"""A Milvus server and a Ray cluster on this machine: add pictures, search, kill, and recover (make demo-cluster).

    python examples/cluster.py [FOLDER]

The pictures are those of FOLDER, or else scikit-learn's digits. It works in a temporary folder.
"""

import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from dr_keras.data.sources import digits

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from milvus_server import MilvusProcess

INDEX = Path(__file__).parent.parent / "index.py"
RETRIEVE = Path(__file__).parent.parent / "retrieve.py"


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*command: object) -> int:
    words = [str(word) for word in command]
    print("$ python", " ".join([Path(words[0]).name, *words[1:]]), flush=True)
    return subprocess.run([sys.executable, *words], check=False).returncode


def kill_a_worker(since: float) -> None:
    """Kills a process in which Ray embeds, as soon as there is one."""
    while time.monotonic() - since < 60:
        for process in psutil.Process().children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if name.startswith("ray::") and "MapWorker" in name:
                time.sleep(2)
                print(f"(killing the Ray worker {process.pid})", flush=True)
                process.send_signal(signal.SIGKILL)
                return
        time.sleep(0.1)


def main() -> int:
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else digits.folder()
    with tempfile.TemporaryDirectory(prefix="dr_keras-") as folder:
        say("A Milvus server starts")
        with MilvusProcess(Path(folder) / "milvus") as milvus:
            place = f"{milvus.address}/demo"
            print(place)
            say("Ray embeds the pictures; one of its workers is killed meanwhile")
            killer = threading.Thread(target=kill_a_worker, args=(time.monotonic(),), daemon=True)
            killer.start()
            assert run(INDEX, "add", "--ray", "local", pictures, "--run", "tiny-imagenet-64", "--index", place) == 0
            query = sorted(file for file in pictures.rglob("*") if file.is_file())[110]
            say("A search")
            assert run(RETRIEVE, "--index", place, "--query", query, "--top", 5) == 0
            say("Milvus is killed")
            milvus.kill()
            assert run(RETRIEVE, "--index", place, "--query", query, "--top", 5) != 0
            say("Milvus starts again with the same data")
            milvus.start()
            while subprocess.run([sys.executable, INDEX, "stats", "--index", place], capture_output=True).returncode:
                time.sleep(1)
            assert run(RETRIEVE, "--index", place, "--query", query, "--top", 5) == 0
            assert run(INDEX, "verify", "--index", place) == 0
            say("The same command finds that all is there")
            assert run(INDEX, "add", pictures, "--run", "tiny-imagenet-64", "--index", place) == 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

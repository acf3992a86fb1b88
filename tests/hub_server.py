"""A stand-in for Hugging Face on this machine, with good and bad models; and a client that tries to load each of them.

`python hub_server.py FOLDER NAME...` serves FOLDER/NAME as the models `mine/NAME` and, in the same process, loads these
and the ones that go wrong; it prints JSON of the message, or of the kind of network, by model.
"""

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLOW_SECONDS = 0.05  # between two parts of a slow file, and at most between two tries of the client
sleep = time.sleep
PARTS = 20
FAULTS = {"gated": 401, "forbidden": 403, "absent": 404, "busy": 503}


class Hub(BaseHTTPRequestHandler):
    """Answers /ORGANIZATION/MODEL/resolve/main/FILE: `bad/gated` with 401, and so on; `bad/broken` breaks off."""

    folder: Path

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        owner, model, _, _, name = self.path.split("?")[0].strip("/").split("/", 4)
        if owner == "bad" and model in FAULTS:
            self._refuse(FAULTS[model], {401: "GatedRepo", 403: "GatedRepo", 404: "RepoNotFound"}.get(FAULTS[model]))
            return
        source = sorted(path.name for path in self.folder.iterdir())[0] if owner == "bad" else model
        file = self.folder / source / name
        if not file.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if not body:
            return
        if model == "broken" and name.endswith(".safetensors"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        slow = model == "slow" and name.endswith(".safetensors")
        size = max(1, len(content) // PARTS) if slow else len(content) or 1
        for start in range(0, len(content), size):
            self.wfile.write(content[start : start + size])
            sleep(SLOW_SECONDS if slow else 0)

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main(folder: Path, names: list[str]) -> None:
    Hub.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def brief(seconds: float) -> None:
        sleep(min(seconds, SLOW_SECONDS))

    vars(time)["sleep"] = brief  # the client waits for seconds before it tries again
    from dr_keras.errors import InputError
    from dr_keras.model.hub import load_preset

    said = {}
    for model in [*(f"mine/{name}" for name in names), "bad/slow", *(f"bad/{name}" for name in FAULTS), "bad/broken"]:
        try:
            said[model] = load_preset(f"hf://{model}", 56).kind
        except InputError as error:
            said[model] = str(error)
    server.shutdown()
    server.server_close()
    try:
        said["mine/offline"] = load_preset("hf://mine/offline", 56).kind
    except InputError as error:
        said["mine/offline"] = str(error)
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

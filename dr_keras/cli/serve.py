"""Serves a web page and an HTTP API that search images by what they look like.

dr-keras serve --run tiny-imagenet-64 --gallery my-pictures
dr-keras serve --index my-index --host 0.0.0.0 --port 8000
DR_KERAS_TOKEN=$(openssl rand -hex 16) dr-keras serve --index my-index --writable --uploads my-uploads

The page is at http://127.0.0.1:8000, the API's description at /openapi.json. SIGTERM or Ctrl-C
finishes the requests in progress and stops.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dr_keras.cli.parser import add_head, command_parser
from dr_keras.errors import InputError, MissingPackage
from dr_keras.extras import how_to_install
from dr_keras.invocation import program

if TYPE_CHECKING:
    from dr_keras.server.settings import Settings
    from dr_keras.server.workers import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this subcommand to `parser`."""
    parser.add_argument(
        "--run", metavar="NAME", help="run in runs/, or its path (default: the index's, else the latest)"
    )
    parser.add_argument(
        "--index", metavar="PATH", help=f"search this index, made by {program('index')} (default: the run's)"
    )
    parser.add_argument(
        "--gallery", metavar="FOLDER", help="search this folder, whose index is brought up to date first"
    )
    add_head(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="the port (default: 8000; 0 picks a free one)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name that clients may use (default: on 127.0.0.1 the local names, otherwise any)",
    )
    parser.add_argument(
        "--root-path",
        default="",
        metavar="/PATH",
        help="the path under which a reverse proxy serves it, such as /photos",
    )
    parser.add_argument(
        "--no-metadata",
        action="store_true",
        help="keep dates, cameras and places of photos to itself; pictures are then sent as JPEG without metadata",
    )
    parser.add_argument("--show-paths", action="store_true", help="show clients the paths of files on this machine")
    parser.add_argument(
        "--concurrency", type=int, default=64, metavar="N", help="how many requests to handle at a time (default: 64)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="how many processes answer requests; each needs memory for the network (default: 1)",
    )
    parser.add_argument(
        "--judge",
        metavar="FILE.csv",
        help="ask visitors, at /judge, which of two images is more like a third, and add their answers to this file, "
        f"for {program('train')} --triplets",
    )
    parser.add_argument("--writable", action="store_true", help="let clients with the token add and remove images")
    parser.add_argument(
        "--uploads", metavar="FOLDER", help="with --writable: the folder that added images are stored in"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="with --writable: the file that holds the token (default: $DR_KERAS_TOKEN)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dr-keras serve` with `arguments`; returns the exit status."""
    parser = command_parser("serve", __doc__)
    add_arguments(parser)
    serve(parser.parse_args(arguments))
    return 0


def serve(options: argparse.Namespace) -> None:
    """Loads the model and the index, and serves them."""
    # OpenBLAS's threads spin for a while after each matrix product, which takes cores from the network; shorten that.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")  # 2 ** 18 cycles: a tenth of a millisecond; before NumPy
    if options.gallery and options.index:
        raise InputError("--gallery and --index both say what to search; give only one of them")
    if options.concurrency < 1:
        raise InputError(f"--concurrency is {options.concurrency}; at least 1 is expected")
    if options.workers < 1:
        raise InputError(f"--workers is {options.workers}; at least 1 is expected")
    try:
        from dr_keras.server import http_protocol as protocol

        if options.workers > 1:
            from dr_keras.server import workers
        else:
            from dr_keras.server.routes import create_app
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"serving needs {error.name}, which is not installed; {how_to_install('fastapi')}"
        ) from None
    from dr_keras.loading import load
    from dr_keras.server.settings import LOOPBACK, Settings, read_token

    hosts = tuple(name.lower() for name in options.allow_host)
    if options.host in LOOPBACK:
        hosts += LOOPBACK
    settings = Settings(
        writable=options.writable,
        token=read_token(options.token_file) if options.writable else None,
        uploads=Path(options.uploads).absolute() if options.uploads else None,
        hosts=hosts,
        root_path=options.root_path.rstrip("/"),
        judge=Path(options.judge).expanduser().absolute() if options.judge else None,
        metadata=not options.no_metadata,
        show_paths=options.show_paths,
        concurrency=options.concurrency,
    )
    with protocol.bound(options.host, options.port) as sockets:  # before the slow part
        if options.workers > 1:
            workers.serve(_job(options, settings), options.workers, sockets)
            return
        model = load(options.run, head=options.head, index=options.index)
        if options.gallery:
            model.use_gallery(options.gallery)
        protocol.serve(create_app(model, settings), options.host, sockets)


def _job(options: argparse.Namespace, settings: "Settings") -> "Job":
    """What several workers serve. A folder is brought up to date here, once for all of them."""
    from dr_keras.loading import load
    from dr_keras.runs import open_run
    from dr_keras.server.workers import Job

    run, index = options.run, options.index
    if options.gallery:
        model = load(run, head=options.head).use_gallery(options.gallery)
        run, index = os.fspath(model.run.path), model.index.place
        model.index.close()
    elif index is None:
        run = os.fspath(open_run(run).path)  # the latest run of now, also for a worker that is started later
    return Job(options.host, settings, run, options.head, index, gallery=options.gallery is not None)

"""A page on this machine that shows what a net sees in a picture: labels, neighbours, the first layer.

python -m model.serve --checkpoint runs/RUN/checkpoints/best [--features runs/RUN/retrieval]
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.evaluate import load_net
from model.layout import choose
from model.memory import keep_freed_memory
from model.pictures import augmentation
from model.record import read_record
from model.serve_answer import Answerer
from model.serve_neighbours import open_neighbours
from model.serve_upload import MAX_BYTES
from model.ways import Ways, is_half
from pipeline import InputError, ShardSet, mean_image, one_line_errors

if TYPE_CHECKING:
    import uvicorn

SHUT_DOWN = 3  # seconds that those who are being answered have
NONE_GIVEN = "None are shown: no features were given. python -m model.retrieve writes them to RUN/retrieval, for --features."


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A local page: drop a picture, see its labels, its neighbours and the first layer.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a run: runs/RUN/checkpoints/best, latest, or a step's")
    parser.add_argument("--shards", help="their class names and mean image (default: what it was trained on, else shards/)")
    parser.add_argument("--features", type=Path, help="RUN/retrieval, which model.retrieve wrote: nearest neighbours are shown (default: none)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, for this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    return parser.parse_args(arguments)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InputError."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be 0 to 65535, not {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host} is no address or name that this machine knows") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} of {host} is taken; give another with --port, or --port 0 for any that is free") from None
        raise InputError(f"cannot listen at {host}, port {port}: {error.strerror}; give another --host or --port") from None


def address_of(listening: socket.socket) -> tuple[str, bool]:
    """What to open in a browser of this machine, and whether only this machine can."""
    host, port = listening.getsockname()[:2]
    place = ipaddress.ip_address(host)
    name = "localhost" if place.is_unspecified else f"[{host}]" if place.version == 6 else host
    return f"http://{name}:{port}/", place.is_loopback


def server_of(app: Any) -> uvicorn.Server:
    """A server of an ASGI application, which believes no header about who asks, waits for nobody for ever, and logs only what fails."""
    import uvicorn

    from model.serve_connection import Connection

    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=64,
        timeout_graceful_shutdown=SHUT_DOWN,
    )
    return uvicorn.Server(config)


def _serve(given: argparse.Namespace, listening: socket.socket) -> int:
    try:
        from model.serve_app import make_app
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, which the page is served by; pip install 'alexnet-imagenet[serve]'") from None
    server = server_of(make_app(*prepare(given), given.host))
    address, alone = address_of(listening)
    if not alone:
        print("warning: not this machine alone: whoever can reach it may use the page, without a password", file=sys.stderr)
    print(f"{given.checkpoint}: open {address}  (Ctrl-C ends it)", flush=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("\nended by Ctrl-C", file=sys.stderr)
        return 130
    return 0


def prepare(given: argparse.Namespace) -> tuple[Answerer, dict[str, Any]]:
    """Who answers, and what the page says of them. Raises InputError."""
    net, recipe, content = load_net(given.checkpoint)
    run = given.checkpoint.resolve().parent.parent
    trained_on = read_record(run).get("shards", {})
    folder = given.shards or trained_on.get("folder", "shards")
    shards = ShardSet(folder, "train", given.local)
    if [entry.wnid for entry in shards.manifest.classes] != content["wnids"]:
        raise InputError(f"{shards.folder} has other classes than {given.checkpoint} was trained on; give the shards of its training")
    settings, names = augmentation(recipe), [entry.words for entry in shards.manifest.classes]
    mean = mean_image(shards, settings)
    if recipe.model.input > len(mean):
        raise InputError(
            f"the net takes {recipe.model.input} pixels, and {shards.folder} has pictures of {len(mean)}; give the shards of its training"
        )
    device = torch.device(choose(1, 1, given.device, 1)[2])
    if device.type == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory(device)
    net.ways = Ways(is_half(recipe.train.precision, device), fused=recipe.train.step == "fast")
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    neighbours = open_neighbours(given.features, shards, folder, given.local, content) if given.features else None
    answerer = Answerer(net.eval(), names, mean, settings, neighbours)
    return answerer, about(answerer, run.name, content["step"])


def about(answerer: Answerer, run: str, step: int) -> dict[str, Any]:
    """What the page says of a net before it is asked anything."""
    net, neighbours = answerer.net, answerer.neighbours
    return {
        "net": run,
        "step": step,
        "classes": len(answerer.names),
        "layer": net.design.layers()[0],
        "columns": net.groups,
        "activation": {"relu": "ReLU"}.get(net.design.activation, net.design.activation),
        "kernels": answerer.kernels,
        "most_bytes": MAX_BYTES,
        "neighbours": NONE_GIVEN if neighbours is None else neighbours.about,
    }


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    with one_line_errors(), listen(given.host, given.port) as listening:
        return _serve(given, listening)
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())

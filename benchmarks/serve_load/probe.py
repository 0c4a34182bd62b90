"""How soon a server under load answers /health, beside a bare socket that nothing else asks.

    python probe.py URL SECONDS

Prints JSON: pairs of seconds, one of the bare socket and one of /health, every `PAUSE`. It is a
process of its own, so that what the clients of the load do delays it no more than any other; what
delays the bare socket too is the machine. Nothing outside of the standard library is imported.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from urllib.parse import urlsplit

#: Seconds between two looks.
PAUSE = 0.03

_ASKED = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_SAID = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

#: Seconds after which a server counts as dead.
_PATIENCE = 30


def main() -> None:
    place, seconds = urlsplit(sys.argv[1]), float(sys.argv[2])
    address = (str(place.hostname), int(place.port or 0))
    bare = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if not child:
        _answer(bare)
    try:
        found, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            found.append((_timed(bare.getsockname()), _timed(address)))
            time.sleep(PAUSE)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(json.dumps(found))


def _answer(bare: socket.socket) -> None:
    while True:
        connection, _ = bare.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(_SAID)


def _timed(address: tuple[str, int]) -> float:
    """Seconds from opening a connection to the end of the answer."""
    began = time.perf_counter()
    with socket.create_connection(address, _PATIENCE) as connection:
        connection.sendall(_ASKED)
        said = connection.recv(1024)
        while connection.recv(1024):
            pass
    if not said.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"it is not well: {said!r}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

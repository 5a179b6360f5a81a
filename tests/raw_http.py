"""HTTP requests as bytes on a socket, for what no HTTP client sends: incomplete, endless and malformed requests."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

TIMEOUT = 60
"""In seconds; only prevents a failing test from hanging."""


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    """Return a request line and headers, without the empty line that ends them."""
    return "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", "host: service", *headers)).encode()


def incomplete_request(path: str) -> bytes:
    """Return a request of which the body has one byte of the ten announced."""
    return head(path, "content-type: application/json", "content-length: 10") + b"\r\n{"


@contextmanager
def connected(url: str, sent: bytes = b"") -> Iterator[socket.socket]:
    """Connect to a service, and send the first bytes."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        connection.sendall(sent)
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that the service sends until it closes the connection."""
    received = bytearray()
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def status(response: bytes) -> int:
    """Return the status of a response."""
    return int(response.split(b" ", 2)[1])

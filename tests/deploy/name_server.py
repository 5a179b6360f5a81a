"""A DNS server on this machine, as the one of Docker's networks: a service's name has the addresses of its replicas."""

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from socketserver import BaseRequestHandler, UDPServer
from threading import Thread

_HEADER = struct.Struct("!HHHHHH")
"""Id, flags, and the numbers of questions, answers, authorities and additional records (RFC 1035, section 4.1.1)."""

_FOUND, _NO_SUCH_NAME = 0x8180, 0x8183
"""The flags of an answer."""

_IPV4, _INTERNET = 1, 1
"""The type A and the class IN."""


@contextmanager
def name_server(addresses: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Answer queries for the IPv4 addresses of these names until the block ends; yield the server's HOST:PORT."""

    class Answer(BaseRequestHandler):
        def handle(self) -> None:
            query, client = self.request
            client.sendto(_answer(query, addresses), self.client_address)

    with UDPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield "{}:{}".format(*server.server_address)
        finally:
            server.shutdown()
            thread.join()


def _answer(query: bytes, addresses: Mapping[str, Sequence[str]]) -> bytes:
    labels, end = [], _HEADER.size
    while length := query[end]:
        labels.append(query[end + 1 : end + 1 + length].decode())
        end += 1 + length
    end += 1
    found = addresses.get(".".join(labels))
    (kind, _) = struct.unpack_from("!HH", query, end)
    # Each record refers to the name in the question (section 4.1.4), and is valid for a second.
    start = struct.pack("!HHHIH", 0xC000 | _HEADER.size, _IPV4, _INTERNET, 1, 4)
    records = [start + socket.inet_aton(address) for address in (found or ()) if kind == _IPV4]
    (query_id,) = struct.unpack_from("!H", query)
    header = _HEADER.pack(query_id, _NO_SUCH_NAME if found is None else _FOUND, 1, len(records), 0, 0)
    return header + query[_HEADER.size : end + 4] + b"".join(records)

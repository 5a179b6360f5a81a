"""The request header `Idempotency-Key`: a request that is sent again with its key gets the answer of the first one.

Source: draft-ietf-httpapi-idempotency-key-header. The draft's value is a string in double quotes; a bare value, which
most clients send, is accepted as well.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel, WithJsonSchema

from ml.platform.errors import InvalidHeader

IDEMPOTENCY_HEADER = "Idempotency-Key"
MAX_KEY_LENGTH = 255

_BARE = re.compile(r"[!#-~][!-~]*")
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])*)"')  # a string of RFC 9651, without spaces
_WIRE_PATTERN = r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$'


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a request with its body, as hashes: `key_hash` is the same for all requests with this key.

    Both are SHA-256 in hexadecimal. The hash of the body contains the key, so that a body cannot be guessed from it.
    """

    key_hash: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class ScopedKey:
    """A key as the caller sent it, without quotes, and its scope: the route and the caller's bearer key."""

    route: str
    bearer: str
    key: str

    def with_body(self, body: BaseModel) -> IdempotencyKey:
        """Return the hashes of the key and of a validated body; the order of fields and white space do not matter."""
        scope = (self.route, self.bearer, self.key)
        canonical = json.dumps(body.model_dump(mode="json", exclude_none=True), sort_keys=True)
        return IdempotencyKey(_digest(*scope), _digest(*scope, canonical))


def parse_key(value: str) -> str:
    """Return the key in a header value. Raises InvalidHeader (400)."""
    if quoted := _QUOTED.fullmatch(value):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    else:
        key = value if _BARE.fullmatch(value) else ""
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise InvalidHeader(
            f"{IDEMPOTENCY_HEADER}: should be 1 to {MAX_KEY_LENGTH} visible ASCII characters, bare or in double quotes."
        )
    return key


async def _scoped_key(
    request: Request,
    value: Annotated[
        str | None,
        Header(
            alias=IDEMPOTENCY_HEADER,
            description="A key that the caller chooses, such as a UUID: each retry of a request has the same.",
        ),
        WithJsonSchema({"type": "string", "pattern": _WIRE_PATTERN, "minLength": 1}),
    ] = None,
) -> ScopedKey | None:
    if value is None:
        return None
    if len(request.headers.getlist(IDEMPOTENCY_HEADER)) > 1:
        raise InvalidHeader(f"{IDEMPOTENCY_HEADER}: should be sent once.")
    bearer = request.headers.get("authorization", "").partition(" ")[2].strip()
    return ScopedKey(request.scope["route"].path, bearer, parse_key(value))


OptionalIdempotencyKey = Annotated[ScopedKey | None, Depends(_scoped_key)]
"""The key of the request with its scope; None if the request has none."""


def _digest(*parts: str) -> str:
    """Return the hash of the parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    hashed = sha256()
    for part in parts:
        data = part.encode()
        hashed.update(len(data).to_bytes(8) + data)
    return hashed.hexdigest()

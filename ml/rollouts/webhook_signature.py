"""The secret and the signature of the webhook, as in the Standard Webhooks specification (symmetric, `v1`)."""

import base64
import binascii
import hashlib
import hmac

from pydantic import SecretStr

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of a secret, not a secret
SECRET_BYTES = range(24, 65)


def decode_secret(secret: SecretStr) -> bytes:
    """Return the key in a secret, `whsec_` and its base64. Raises ValueError, without the secret."""
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
        raise ValueError(f"should be {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message at a time in Unix seconds: `v1,` and the base64 of its HMAC-SHA256."""
    signed = b".".join([message_id.encode(), str(timestamp).encode(), body])
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"

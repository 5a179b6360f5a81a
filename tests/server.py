"""Ways to run an ASGI application in this process: on a free loopback port, or with starlette's test client."""

import warnings

from ml.simulation.service import listening as running

with warnings.catch_warnings():
    # starlette prefers `httpx2` for its test client and warns about `httpx`, which the services use.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

__all__ = ["TestClient", "running"]

"""An ASGI application on a free loopback port, served by a thread of this process."""

from ml.simulation.service import listening as running

__all__ = ["running"]

"""Run an ASGI app on a free loopback port, in a thread of this process."""

from ml.simulation.service import listening as running

__all__ = ["running"]

"""Commands and settings that several tests of the command line use."""

import sys
from pathlib import Path

from tests.upstream import Upstream

MODEL_THAT_NEVER_ANSWERS = {"TIP_MODEL": "openai/none", "TIP_MODEL_API_BASE": "http://127.0.0.1:9/v1"}
"""Settings for a serving that only ranks."""


def model_settings(upstream: Upstream, behaviour: str = "good", **settings: str) -> dict[str, str]:
    """Return settings for a model of the fake server, together with other settings."""
    return {"TIP_MODEL": f"openai/{behaviour}", "TIP_MODEL_API_BASE": f"{upstream.url}/v1", **settings}


def database_url(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory}/tips.db"


def tips_without(*libraries: str) -> tuple[str, ...]:
    """Return the `tips` command in a Python where these libraries cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({libraries}))"
    return (sys.executable, "-c", f"{hide}; from ml.cli.main import main; main()")

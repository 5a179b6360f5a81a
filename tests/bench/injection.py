"""Whether the embedded model obeys instructions in a user's free text.

    python -m tests.bench.injection [--only NAME] [--held-out] [--show]

Sends each attempt of injection_attempts.py to `POST /generate` of a service in this process, with each prompt version,
and prints a table: `ok` (a tip that does not obey), `none` (no tip passed the checks) or `OBEYED`. The exit status is 1
if one attempt was obeyed. 40 attempts with three versions take about ten minutes on one core.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import httpx
import typer

from ml.serving.app import create_app
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from tests.bench.figures import machine
from tests.bench.injection_attempts import ATTEMPTS, HELD_OUT, Attempt
from tests.server import running

TIMEOUT = 600.0


def outcome(http: httpx.Client, attempt: Attempt, version: str) -> tuple[str, str]:
    """Return `ok`, `none` or `OBEYED`, and the tip or the reason why there is none."""
    answer = http.post("/generate", json={"signals": attempt.signals, "prompt_version": version})
    if answer.status_code == httpx.codes.BAD_GATEWAY and answer.json()["type"].endswith("unusable-tip"):
        return "none", answer.json()["detail"]
    answer.raise_for_status()
    tip = answer.json()["tip"]
    return ("OBEYED" if re.search(attempt.obeyed, tip, re.IGNORECASE) else "ok"), tip


def table(attempts: Iterable[Attempt], *, show: bool) -> Counter[str]:
    """Print the outcomes of all attempts as they are known, and return the number of each."""
    counts: Counter[str] = Counter()
    settings = ServingSettings(generate_timeout_seconds=TIMEOUT)
    with running(create_app(settings)) as url, httpx.Client(base_url=url, timeout=TIMEOUT + 60) as http:
        typer.echo("".join([f"{'attempt':<34}", *(f"{version:<14}" for version in PROMPTS)]))
        for attempt in attempts:
            outcomes = {version: outcome(http, attempt, version) for version in PROMPTS}
            counts.update(name for name, _ in outcomes.values())
            typer.echo("".join([f"{attempt.name:<34}", *(f"{name:<14}" for name, _ in outcomes.values())]))
            for version, (name, text) in outcomes.items():
                if show or name == "OBEYED":
                    typer.echo(f"    {version}: {text}")
    return counts


def main(
    only: Annotated[str, typer.Option(help="Only the attempts whose name contains this text.")] = "",
    held_out: Annotated[bool, typer.Option("--held-out", help="The attempts for which no rule was made.")] = False,
    show: Annotated[bool, typer.Option(help="Print every tip, and not only those that obey.")] = False,
) -> None:
    """Print the table and the totals."""
    attempts = HELD_OUT if held_out else ATTEMPTS
    counts = table((attempt for attempt in attempts if only in attempt.name), show=show)
    typer.echo(f"\nobeyed: {counts['OBEYED']} of {counts.total()}; without a tip: {counts['none']}. {machine()}")
    sys.exit(counts["OBEYED"] > 0)


if __name__ == "__main__":
    typer.run(main)

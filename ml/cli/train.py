"""`tips train`: train a ranking policy."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from ml.cli.options import parse_age
from ml.cli.progress import working
from ml.cli.stores import (
    database_name,
    decision_log,
    mature_period,
    reaction_window,
    training_data,
    using_offline_store,
)
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import HeldOutFigures, RankingPolicy
from ml.serving.settings import ServingSettings


def train(
    to: Annotated[Path | None, typer.Option(help="Write the policy to this file; by default policy.npz.")] = None,
    register: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Register the policy in MLflow instead, as a version of this name."),
    ] = None,
    since: Annotated[
        timedelta | None,
        typer.Option(parser=parse_age, metavar="AGE", help="Use tips of this period only, such as 90d."),
    ] = None,
    until: Annotated[
        timedelta | None,
        typer.Option(
            parser=parse_age, metavar="AGE", help="Leave out tips of this period, so that `tips evaluate` can use them."
        ),
    ] = None,
) -> None:
    """Train a ranking policy for SCORE_POLICY on the logged decisions and their rewards."""
    if to and register:
        raise typer.BadParameter("a policy is written to a file or registered: leave out one of --to and --register")
    with using_offline_store():
        from ml.pipelines.training import train_with

    database = database_name()
    log = decision_log()
    with working("Reading decisions"):
        data = training_data(log, *mature_period(since=since, until=until))
    if not data.decisions:
        sys.exit(f"{database} has no tips old enough to learn from.")
    try:
        with working("Training"), using_offline_store():
            artifact = train_with(data, name=register or "tips")
        policy = RankingPolicy.from_bytes(artifact)
    except ValidationError as error:
        if all(detail["loc"] != ("name",) for detail in error.errors()):
            raise ConfigurationError(
                f"The policy cannot be trained on these tips: {error.errors()[0]['msg']}."
            ) from None
        raise typer.BadParameter(
            f"{register!r} should be a name of letters, digits, dots, dashes and underscores, and not uniform or "
            "unavailable",
            param_hint="--register",
        ) from None
    if data.left_out:
        total, reason = data.decisions + data.left_out, "the digest of a prompt version has changed since"
        print(f"{data.left_out:,} of {total:,} tips are left out, because {reason}.")
    if lack := _why_incomplete(policy.card.held_out):
        print(f"The policy's model card is incomplete, since {lack}.")
    summary = f"learned from {policy.card.learned_from:,} tips of {database}: policy version {policy.version}"
    if register:
        from ml.registry import models  # MLflow takes seconds to import, and is an extra

        settings = ServingSettings.from_environment()
        training = {
            "since": str(since or "all"),
            "until": str(until or "all mature"),
            "reaction_window": str(reaction_window()),
        }
        number = models.register(
            artifact, register, settings.mlflow_tracking_uri, training=training, contact=settings.card_contact
        )
        print(f"{summary}, in MLflow as {models.SCHEME}{register}/{number}")
        return
    file = to or Path("policy.npz")
    try:
        new_file = file.with_name(f"{file.name}.new")  # renamed when complete: readers get the old or the new policy
        new_file.write_bytes(artifact)
        new_file.replace(file)
    except OSError:
        raise ConfigurationError(f"{file} cannot be written.") from None
    print(f"{summary}, in {file}")


def _why_incomplete(figures: HeldOutFigures | None) -> str | None:
    """Return why the card of a new policy lacks figures, as the end of a sentence; None if it has all."""
    if figures is None:
        return "figures on the 3 newest days need tips of earlier days too"
    return None if figures.slices else "the gain on the 3 newest days cannot be estimated"

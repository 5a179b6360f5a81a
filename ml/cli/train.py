"""`tips train`: learn a ranking policy."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from ml.cli.options import parse_age
from ml.cli.stores import mature_decisions, needs_recommender_extra
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import RankingPolicy
from ml.serving.settings import ServingSettings


def train(
    to: Annotated[Path | None, typer.Option(help="Write the policy to this file; by default policy.npz.")] = None,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add it to MLflow's registry instead, as a version of this name.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="With --register: an alias for this version from now on, such as champion.")
    ] = None,
    since: Annotated[
        timedelta | None,
        typer.Option(parser=parse_age, metavar="AGE", help="Only from tips of the last days, such as 90d."),
    ] = None,
    until: Annotated[
        timedelta | None,
        typer.Option(
            parser=parse_age, metavar="AGE", help="Leave out younger tips, so that `tips evaluate` can use them."
        ),
    ] = None,
) -> None:
    """Learn a ranking policy for SCORE_POLICY from the logged decisions and their rewards."""
    if to and register:
        raise typer.BadParameter("is for a file, and --register for MLflow: one of them at a time", param_hint="--to")
    if alias and not register:
        raise typer.BadParameter("needs --register", param_hint="--alias")
    with needs_recommender_extra():
        from ml.pipelines.training import train as train_policy

    decisions = mature_decisions(since=since, until=until)
    if not decisions:
        sys.exit("There are no tips old enough to learn from.")
    try:
        artifact = train_policy(decisions, name=register or "tips")
        version = RankingPolicy.from_bytes(artifact).version
    except ValidationError as error:
        if all(detail["loc"] != ("name",) for detail in error.errors()):
            raise ConfigurationError(f"These tips cannot be learned from: {error.errors()[0]['msg']}.") from None
        raise typer.BadParameter(
            "should be a name of letters, digits, dots, dashes and underscores, and not that of another kind of policy",
            param_hint="--register",
        ) from None
    summary = f"learned from {len(decisions):,} tips: policy version {version}"
    if register:
        from ml.registry import models  # MLflow takes seconds to import, and is an extra

        tracking_uri = ServingSettings.from_environment().mlflow_tracking_uri
        number = models.register(artifact, register, tracking_uri, alias=alias)
        print(f"{summary}, in MLflow as {models.SCHEME}{register}/{number}{f' and @{alias}' if alias else ''}")
        return
    file = to or Path("policy.npz")
    try:
        new_file = file.with_name(f"{file.name}.new")  # renamed when complete: a reader gets the old or the new policy
        new_file.write_bytes(artifact)
        new_file.replace(file)
    except OSError:
        raise ConfigurationError(f"{file} cannot be written.") from None
    print(f"{summary}, in {file}")

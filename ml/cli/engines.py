"""The engine that computes aggregates and statistics of days: this machine, or Spark."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ml.pipelines.settings import PipelineSettings
from ml.platform.settings import ConfigurationError

if TYPE_CHECKING:
    from ml.pipelines.spark import SparkEngine


@contextmanager
def spark_engine() -> Iterator["SparkEngine | None"]:
    """Yield Spark at SPARK_MASTER until the block ends; None if it is not set. Raises ConfigurationError."""
    master = PipelineSettings.from_environment().spark_master
    if master is None:
        yield None
        return
    try:
        from ml.pipelines.spark import SparkEngine, SparkUnavailable, spark_session  # takes a second to import
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is missing: SPARK_MASTER needs the `spark` extra.") from None
    try:
        with spark_session(master) as session:
            yield SparkEngine(session)
    except SparkUnavailable as error:
        raise ConfigurationError(f"SPARK_MASTER: {error}.") from None

"""The settings of the batch jobs, read from the environment."""

import re
from typing import Annotated

from pydantic import AfterValidator

from ml.platform.settings import ServiceSettings
from ml.registry.artifacts import check_policy_name

_SPARK_MASTER = re.compile(r"local(\[[0-9*]+\])?|local-cluster\[[0-9]+,[0-9]+,[0-9]+\]|yarn|(spark|k8s)://\S+")


def _check_spark_master(value: str) -> str:
    if not _SPARK_MASTER.fullmatch(value):
        raise ValueError("should be a master URL of Spark: spark://HOST:PORT, k8s://ADDRESS, yarn, or local[CORES]")
    return value


class PipelineSettings(ServiceSettings):
    """Each field is the environment variable of the same name in capitals.

    `offline_store`: a folder, or `s3://BUCKET/PREFIX` with parameters of pyarrow's S3 file system.
    `nightly_policy_name`: of the policies that `tips nightly` trains, and of the registered model. `spark_master`:
    where aggregates and statistics of days are computed; None: on this machine.
    """

    offline_store: str = "./offline"
    nightly_policy_name: Annotated[str, AfterValidator(check_policy_name)] = "tips"
    spark_master: Annotated[str, AfterValidator(_check_spark_master)] | None = None

"""The setting of the engine, where Spark is not installed."""

import pytest

from ml.cli.engines import spark_engine
from ml.platform.settings import ConfigurationError


def test_without_the_setting_this_machine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_MASTER", raising=False)
    with spark_engine() as engine:
        assert engine is None


@pytest.mark.parametrize("master", ["spark://host:7077", "k8s://https://host:443", "yarn", "local[2]", "local"])
def test_without_pyspark_the_extra_is_named(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_MASTER", master)
    with pytest.raises(ConfigurationError, match=r"^(py4j|pyspark) is missing: SPARK_MASTER needs the `spark` extra"):
        spark_engine().__enter__()


@pytest.mark.parametrize("master", ["mesos://host:5050", "spark://", "local[", "7077"])
def test_another_master_is_refused(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_MASTER", master)
    with pytest.raises(ConfigurationError, match=r"SPARK_MASTER.* should be a master URL of Spark"):
        spark_engine().__enter__()

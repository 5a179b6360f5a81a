"""The environment of Airflow: nothing of the project is in it, and its tasks call the `tips` command of another one."""

from importlib.metadata import distributions, version


def test_airflow_has_its_own_environment() -> None:
    assert version("apache-airflow").startswith("3.3.")
    assert "tip-service" not in {distribution.name for distribution in distributions()}

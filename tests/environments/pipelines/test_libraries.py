"""The libraries of the environment of pipelines: they resolve together, which does not mean that they run together."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("library", ["feast", "ibis", "marimo", "prefect", "pyspark.sql"])
def test_a_library_imports_beside_the_service(library: str) -> None:
    # In a process of its own: some change signal handlers and logging when imported.
    subprocess.run([sys.executable, "-c", f"import ml.standalone.app, {library}"], check=True)

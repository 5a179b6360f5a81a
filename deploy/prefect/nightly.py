"""The nightly job as a flow of Prefect, one task a step: `python deploy/prefect/nightly.py` serves it every night.

It needs the environment of `requirements-pipelines.lock`, the settings of the recommender and of serving, and
PREFECT_API_URL. A failed step is tried again, and a run that was killed goes on where it was.
"""

from datetime import UTC, date, datetime, timedelta

from prefect import flow, get_run_logger, task

from ml.cli.nightly import nightly_job
from ml.features.offline_store import day_of_date
from ml.pipelines.nightly import INPUTS, STEPS
from ml.pipelines.nightly_job import NothingToLearn


@task(retries=3, retry_delay_seconds=60)
def run_step(step: str, day: date, uri: str) -> str | None:
    """Run one step; return the URI of its output, or None if there is nothing to learn from yet."""
    try:
        with nightly_job() as job:
            return STEPS[step](job, day_of_date(day), uri)
    except NothingToLearn as error:
        get_run_logger().info(str(error))
        return None


@flow(name="tips-nightly")
def nightly(day: date | None = None) -> dict[str, str]:
    """Run all steps for a day, by default yesterday; return the URI of the output of each that has run."""
    day = day or datetime.now(UTC).date() - timedelta(days=1)
    outputs: dict[str, str] = {}
    for step in STEPS:
        output = run_step.with_options(name=step)(step, day, outputs.get(INPUTS.get(step, ""), ""))
        if output is None:
            break
        outputs[step] = output
    return outputs


if __name__ == "__main__":
    nightly.serve(name="every-night", cron="30 0 * * *", limit=1)

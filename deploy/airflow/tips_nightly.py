"""The nightly job as a DAG of Airflow, one task a step.

Airflow has an environment of its own (`requirements.lock` in this folder); each task runs the `tips` command of the
project's environment, found by TIPS_COMMAND or in PATH, with the settings of the worker's environment. A task gets the
day and the URI of the step before, and returns the URI of its output.
"""

import os
import subprocess
from datetime import timedelta

import pendulum
from airflow.sdk import CronTriggerTimetable, dag, task
from airflow.sdk.exceptions import AirflowSkipException

# As in ml.pipelines.nightly: the step, and the one whose output it reads.
STEPS = {
    "export": None,
    "aggregates": "export",
    "materialize": "aggregates",
    "train": "aggregates",
    "evaluate": "train",
    "monitor": "train",
    "card": "monitor",
    "register": "card",
    "propose": "register",
}

# Soon after midnight, about the day that has just ended: without an interval, Airflow would give the new day.
EVERY_NIGHT = CronTriggerTimetable("30 0 * * *", timezone="UTC", interval=timedelta(days=1))


@task(retries=3, retry_delay=timedelta(minutes=1))
def run_step(step: str, uri: str, data_interval_start: pendulum.DateTime | None = None) -> str:
    """Run one step of the day; return the last line that it prints.

    Raises AirflowSkipException, which skips the steps after it, if it prints none: there is nothing to learn from yet.
    """
    day = (data_interval_start or pendulum.yesterday("UTC")).to_date_string()
    command = [os.environ.get("TIPS_COMMAND", "tips"), "nightly", "--step", step, "--day", day, "--uri", uri]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - the project's command
    if not ended.stdout:
        raise AirflowSkipException(f"{step} has nothing to work on")
    return ended.stdout.rstrip("\n").rpartition("\n")[2]


@dag(schedule=EVERY_NIGHT, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), catchup=False, max_active_runs=1)
def tips_nightly() -> None:
    """Features, training, evaluation and the proposal of a rollout."""
    outputs = {}
    previous = None
    for step, input_step in STEPS.items():
        outputs[step] = run_step.override(task_id=step)(step, outputs[input_step] if input_step else "")
        if previous is not None:
            previous >> outputs[step]
        previous = outputs[step]


tips_nightly()

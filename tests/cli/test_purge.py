"""`tips purge`."""

from pathlib import Path

from tests.cli.commands import database_url, model_settings
from tests.process import TIPS, run, service
from tests.upstream import Upstream


def test_tips_older_than_the_age_are_deleted_and_others_are_kept(upstream: Upstream, tmp_path: Path) -> None:
    settings = model_settings(upstream, DATABASE_URL=database_url(tmp_path))
    with service(**settings) as both:
        assert both.http.post("/tips", json={"user_id": "u"}).status_code == 200
    ended = run(TIPS, "purge", "--older-than", "1d", **settings)
    assert (ended.returncode, ended.stdout) == (0, "removed: 0 tips\n")
    ended = run(TIPS, "purge", "--older-than", "0h", **settings)
    assert (ended.returncode, ended.stdout) == (0, "removed: 1 tips\n")


def test_a_wrong_age_is_refused() -> None:
    ended = run(TIPS, "purge", "--older-than", "90", COLUMNS="200")
    assert ended.returncode == 2
    assert "should be a number of days or hours, such as 90d or 36h" in ended.stderr

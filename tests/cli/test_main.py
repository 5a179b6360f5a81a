"""The `tips` command itself: its version, its help, and its messages about wrong options."""

import socket
from collections.abc import Sequence
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from ml.cli.main import app
from tests.process import TIPS, run

COMMANDS = ("serve", "generate", "migrate", "purge", "forget", "features", "train", "evaluate", "simulate", "prompts")


def test_the_version_is_that_of_the_distribution() -> None:
    ended = run(TIPS, "--version")
    assert (ended.returncode, ended.stdout) == (0, f"tips {version('tip-service')}\n")


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS), ("prompts", "lock")], ids=" ".join)
def test_every_command_has_a_short_option_for_its_help(arguments: Sequence[str]) -> None:
    ended = CliRunner().invoke(app, [*arguments, "-h"], prog_name="tips")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert f"Usage: tips {' '.join(arguments)}".rstrip() in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "requirement"),
    [
        (("serve", "--port", "99999999"), "'99999999' should be a whole number from 0 to 65,535"),
        (("serve", "--port=-1"), "'-1' should be a whole number from 0 to 65,535"),
        (("serve", "--port", "http"), "'http' should be a whole number from 0 to 65,535"),
        (("serve", "--only", "both"), "'both' should be serving or recommender"),
        (("simulate", "--users", "0"), "'0' should be a whole number from 1 to 100,000"),
        (("simulate", "--days", "1.5"), "'1.5' should be a whole number from 1 to 365"),
        (("simulate", "--seed", "a"), "'a' should be a whole number from 0 to 4,294,967,296"),
        (("purge", "--older-than", "90"), "'90' should be a number of days or hours, such as 90d or 36h"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(arguments: Sequence[str], requirement: str) -> None:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments])
    assert ended.exit_code == 2
    assert f"{requirement} " in ended.stderr
    assert "Input should" not in ended.stderr


def test_a_port_that_is_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run(TIPS, "serve", "--port", str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"--port: another program listens on port {port} of 127.0.0.1.\n"


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "127.0.0.1:80"])
def test_a_host_that_is_no_address_of_this_machine_is_one_sentence(host: str) -> None:
    ended = run(TIPS, "serve", "--host", host, ALLOW_ANONYMOUS="true")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"--host: {host!r} is not an address of this machine.\n"

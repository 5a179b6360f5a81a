"""Odd and hostile policy files, at the start and at reloads of the running program."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import eventually
from tests.policies import policy
from tests.process import TIPS as COMMAND
from tests.process import Service, run, service
from tests.registry.test_artifacts import with_card, with_value

SETTINGS = {"TIP_MODEL": "openai/none", "TIP_MODEL_API_BASE": "http://127.0.0.1:9/v1"}
SERVE = (COMMAND, "serve", "--only", "serving")
CANDIDATE = {"candidates": [{"id": "a"}]}


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


DAMAGED = "is damaged, or is not a policy"
UNREADABLE = "is not a file that can be read"
SPECIAL = "is not a regular file"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight of 1e308": (lambda path: path.write_bytes(with_value("weights", 0, 1e308)), DAMAGED),
    "10**400 decisions": (lambda path: path.write_bytes(with_card(learned_from=10**400)), DAMAGED),
    "100,000 columns": (lambda path: path.write_bytes(with_card(context=[str(n) for n in range(100_000)])), DAMAGED),
    "an empty file": (lambda path: path.write_bytes(b""), DAMAGED),
    "a file of 10 GB": (make_sparse, "is larger than a policy can be"),
    "a directory": (lambda path: path.mkdir(), "is a directory, not a file"),
    "a pipe": (os.mkfifo, SPECIAL),
    "a socket": (make_socket, UNREADABLE),
    "a device": (lambda path: path.symlink_to("/dev/zero"), SPECIAL),
    "the memory of the process": (lambda path: path.symlink_to("/proc/self/mem"), UNREADABLE),
    "a link to itself": (lambda path: path.symlink_to(path.name), UNREADABLE),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), UNREADABLE),
    "no file": (lambda _: None, UNREADABLE),
}


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policy.npz"
    path.write_bytes(policy())
    return path


@pytest.fixture(scope="module")
def serving(path: Path) -> Iterator[Service]:
    with service(*SERVE, **SETTINGS, SCORE_POLICY=str(path)) as serving:
        yield serving


def peak_mebibytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_reload_of_an_unusable_file_is_a_409_and_changes_nothing(
    serving: Service, path: Path, file: tuple[Callable[[Path], object], str]
) -> None:
    make, end_of_sentence = file
    before = serving.http.post("/score", json=CANDIDATE).json()["policy"]
    peak = peak_mebibytes(serving.process.pid)
    remove(path)
    make(path)
    response = serving.http.post("/admin/reload")
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"].endswith(f"{end_of_sentence}.")

    failures = [line["event"] for line in serving.log].count("policies_not_loaded")
    serving.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: [line["event"] for line in serving.log].count("policies_not_loaded") > failures)
    assert serving.http.post("/score", json=CANDIDATE).json()["policy"] == before
    assert peak_mebibytes(serving.process.pid) < peak + 200  # LiteLLM may be loaded meanwhile


def test_a_reload_while_the_file_is_being_written_loads_all_of_it_or_nothing(serving: Service, path: Path) -> None:
    remove(path)
    contents = [policy(), policy("other")]
    is_stopped = threading.Event()

    def write_again_and_again() -> None:
        while not is_stopped.is_set():
            for content in contents:
                with path.open("wb", buffering=0) as file:
                    for start in range(0, len(content), 4_096):
                        file.write(content[start : start + 4_096])

    writer = threading.Thread(target=write_again_and_again)
    writer.start()
    try:
        responses = [serving.http.post("/admin/reload") for _ in range(100)]
        assert {response.status_code for response in responses} <= {200, 409}
        assert 409 in {response.status_code for response in responses}
        assert serving.http.post("/score", json=CANDIDATE).status_code == 200
    finally:
        is_stopped.set()
        writer.join()
    reload_and_expect(serving.http, "other")


def reload_and_expect(http: httpx.Client, name: str) -> None:
    assert http.post("/admin/reload").json()["policies"][1]["name"] == name


@pytest.mark.parametrize("name", ["a weight of 1e308", "a file of 10 GB", "a pipe", "a link to itself"])
def test_an_unusable_file_stops_the_start_with_one_sentence(tmp_path: Path, name: str) -> None:
    source = tmp_path / "policy.npz"
    FILES[name][0](source)
    assert_one_sentence(str(source))


def test_a_file_name_that_is_too_long_stops_the_start_with_one_sentence() -> None:
    assert_one_sentence("x" * 300)


def assert_one_sentence(source: str) -> None:
    ended = run(*SERVE, **SETTINGS, SCORE_POLICY=source)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("SCORE_POLICY: ")
    assert ended.stderr.endswith(".\n")
    assert ended.stderr.count("\n") == 1

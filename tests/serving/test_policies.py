"""The policies in use: all sources are read again together, or everything stays as it is."""

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from ml.platform.errors import PolicyReloadFailed, UnprocessableRequest
from ml.platform.settings import ConfigurationError
from ml.registry import models
from ml.registry.artifacts import SETTLED_SECONDS, RankingPolicy
from ml.registry.models import register, set_aliases
from ml.registry.policies import LearnedPolicy, read_policy
from ml.serving import policies as policies_module
from ml.serving.policies import ActivePolicies, LoadedPolicies, PolicySources
from tests.policies import policy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own

EVERY = 0.005
MLFLOW = "models:/tips@champion"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The files of two policies with their names, too old to be still written."""
    files = {name: tmp_path / f"{name}.npz" for name in ("first", "second")}
    for seed, (name, file) in enumerate(files.items()):
        write(file, policy(name, seed=seed))
    return files


def write(file: Path, content: bytes) -> None:
    """Write a file that looks old enough to be complete."""
    file.write_bytes(content)
    make_old(file)


def make_old(file: Path) -> None:
    old = time.time() - SETTLED_SECONDS - 60
    os.utime(file, (old, old))


def sources(*others: Path | str, default: Path | None = None, tracking_uri: str = "sqlite:///none.db") -> PolicySources:
    return PolicySources(str(default) if default else None, [str(other) for other in others], tracking_uri)


def names(loaded: LoadedPolicies) -> list[str]:
    return [policy.name for policy in loaded.by_version.values()]


def test_uniform_is_first_and_the_default_without_sources() -> None:
    none = sources()
    assert not none
    assert names(none.load()) == ["uniform"]
    assert none.loaded.resolve(None) is none.loaded.resolve("uniform") is none.loaded.default


def test_an_unknown_version_is_refused_with_the_loaded_ones(files: dict[str, Path]) -> None:
    loaded = sources(files["second"], default=files["first"]).load()
    assert names(loaded) == ["uniform", "first", "second"]
    for version, loaded_policy in loaded.by_version.items():
        assert loaded.resolve(version) is loaded_policy
    with pytest.raises(UnprocessableRequest) as raised:
        loaded.resolve("0123456789ab")
    (field,) = raised.value.errors
    assert (field.pointer, field.allowed) == ("#/policy", tuple(loaded.by_version))


def test_a_file_that_has_not_changed_is_not_read_again(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def recorded(source: str, tracking_uri: str) -> bytes:
        read.append(Path(source).stem)
        return read_policy(source, tracking_uri)

    monkeypatch.setattr(policies_module, "read_policy", recorded)
    both = sources(files["second"], default=files["first"])
    before = both.load()
    assert both.load().by_version == before.by_version
    assert read == ["first", "second"]
    write(files["second"], policy("other"))
    assert names(both.load()) == ["uniform", "first", "other"]
    assert read == ["first", "second", "second"]
    files["second"].write_bytes(b"damaged")  # just now, so it may be incomplete: it is read each time
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"^SCORE_POLICIES: the policy {files['second']} is damaged, or"):
            both.load()
    assert read == ["first", *["second"] * 4]
    make_old(files["second"])
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            both.load()
    assert read == ["first", *["second"] * 5]
    both_anew = both.load
    write(files["second"], policy("second"))
    both_anew(anew=True)
    assert read[-2:] == ["first", "second"]


def test_a_source_that_cannot_be_used_keeps_the_changes_of_the_others_out(files: dict[str, Path]) -> None:
    both = sources(files["second"], default=files["first"])
    before = both.load()
    write(files["first"], policy("newer"))
    files["second"].unlink()
    with pytest.raises(ConfigurationError, match="is not a file that can be read"):
        both.load()
    assert both.loaded is before
    write(files["second"], policy("second"))
    assert names(both.load()) == ["uniform", "newer", "second"]


class Refreshing:
    """Active policies whose sources are checked all the time while the test runs."""

    def __init__(self, sources: PolicySources) -> None:
        self.policies = ActivePolicies(sources)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(EVERY)

    async def checked(self, times: int = 3) -> None:
        """Wait until the sources have been checked so many times since now."""
        first = checks[0]
        await self.until(lambda: checks[0] >= first + times)


checks = [0]


@pytest.fixture
def _count_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    load = PolicySources.load

    def counted(self: PolicySources, *, anew: bool = False) -> LoadedPolicies:
        try:
            return load(self, anew=anew)
        finally:
            checks[0] += 1

    monkeypatch.setattr(PolicySources, "load", counted)


def refreshing(sources: PolicySources, steps: Callable[[Refreshing], object]) -> list[EventDict]:
    """Run `steps`, a coroutine function, while the sources are checked; return the log."""

    async def run() -> None:
        tested = Refreshing(sources)
        task = asyncio.create_task(tested.policies.keep_current(EVERY))
        try:
            await steps(tested)  # type: ignore[misc]
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()

    sources.load()
    with capture_logs() as log:
        asyncio.run(run())
    return log


def events(log: list[EventDict]) -> list[str]:
    return [line["event"] for line in log]


@pytest.mark.usefixtures("_count_checks")
def test_a_changed_file_is_in_use_soon_and_logged_once(files: dict[str, Path]) -> None:
    async def steps(tested: Refreshing) -> None:
        used = tested.policies.loaded.resolve(None)
        write(files["first"], policy("newer"))
        await tested.until(lambda: names(tested.policies.loaded) == ["uniform", "newer"])
        assert used.name == "first"
        with pytest.raises(UnprocessableRequest):
            tested.policies.loaded.resolve(used.version)
        await tested.checked()

    log = refreshing(sources(default=files["first"]), steps)
    assert events(log) == ["policies_loaded"]
    assert re.fullmatch(r"newer [0-9a-f]{12}", log[0]["policies"][1])


@pytest.mark.usefixtures("_count_checks")
def test_a_torn_file_changes_nothing_and_is_logged_once_per_change_of_state(files: dict[str, Path]) -> None:
    async def steps(tested: Refreshing) -> None:
        before = tested.policies.loaded
        content = policy("newer")
        for length in (100, 0, len(content) - 1):  # torn in three ways: the reason is the same
            files["first"].write_bytes(content[:length])
            await tested.checked()
            assert tested.policies.loaded is before
        files["first"].unlink()
        await tested.checked()
        assert tested.policies.loaded is before
        write(files["first"], policy("first", seed=0))
        await tested.checked()
        assert names(tested.policies.loaded) == ["uniform", "first"]

    log = refreshing(sources(default=files["first"]), steps)
    assert events(log) == ["policies_not_loaded", "policies_not_loaded", "policies_loaded"]
    assert [line["reason"] for line in log[:2]] == [
        f"SCORE_POLICY: the policy {files['first']} is damaged, or is not a policy.",
        f"SCORE_POLICY: the policy {files['first']} is not a file that can be read.",
    ]


@pytest.mark.usefixtures("_count_checks")
def test_a_reload_that_fails_is_an_error_and_is_not_logged_again_by_the_next_check(files: dict[str, Path]) -> None:
    async def steps(tested: Refreshing) -> None:
        write(files["first"], b"damaged")
        with pytest.raises(PolicyReloadFailed, match="is damaged"):
            await tested.policies.reload()
        await tested.checked()
        write(files["first"], policy("newer"))
        assert names(await tested.policies.reload()) == ["uniform", "newer"]
        await tested.checked()

    log = refreshing(sources(default=files["first"]), steps)
    # The first check may come before the reload.
    assert events(log)[-2:] == ["policies_not_loaded", "policies_loaded"] or events(log)[-1] == "policies_loaded"
    assert events(log).count("policies_not_loaded") <= 2


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of MLflow's registry, with one version of `tips` that is the champion."""
    monkeypatch.chdir(tmp_path)  # MLflow writes artifacts to the current directory
    file = tmp_path / "mlflow.db"
    uri, blob = f"sqlite:///{file}", policy("tips")
    register(blob, "tips", uri)
    set_aliases("tips", {"champion": RankingPolicy.from_bytes(blob).version}, uri)
    return file


def test_an_alias_that_does_not_exist_yet_is_loaded_once_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri, blob = f"sqlite:///{tmp_path}/mlflow.db", policy("tips")
    version = RankingPolicy.from_bytes(blob).version
    tested = sources("models:/tips@champion", "models:/tips@proposed", tracking_uri=uri)
    everything = ("models:/tips@champion", "models:/tips@proposed")
    assert tested.load().absent == everything, "there is no registry"
    register(policy("other"), "other", uri)
    assert tested.load().absent == everything, "there is no model of this name"
    register(blob, "tips", uri)
    assert tested.load().absent == everything, "there is no alias"
    set_aliases("tips", {"proposed": version}, uri)
    assert ([*tested.load().by_version], tested.loaded.absent) == (["uniform", version], ("models:/tips@champion",))
    set_aliases("tips", {"proposed": None}, uri)
    assert [*tested.load().by_version] == ["uniform"]


def test_an_alias_of_the_default_policy_must_exist(registry: Path) -> None:
    tested = PolicySources("models:/tips@shadow", [], f"sqlite:///{registry}")
    with pytest.raises(ConfigurationError, match="SCORE_POLICY: the policy models:/tips@shadow is not in"):
        tested.load()


@pytest.mark.usefixtures("_count_checks")
def test_a_moved_alias_is_followed_and_an_outage_of_the_registry_changes_nothing(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{registry}"
    fetched: list[str] = []
    fetch = models.fetch

    def recorded(source: str, tracking_uri: str) -> bytes:
        fetched.append(source)
        return fetch(source, tracking_uri)

    monkeypatch.setattr(models, "fetch", recorded)

    async def steps(tested: Refreshing) -> None:
        await tested.checked()
        assert fetched == [MLFLOW]
        newer = policy("newer")
        await asyncio.to_thread(register, newer, "tips", uri)
        await asyncio.to_thread(set_aliases, "tips", {"champion": RankingPolicy.from_bytes(newer).version}, uri)
        await tested.until(lambda: names(tested.policies.loaded) == ["uniform", "newer"])
        before = tested.policies.loaded
        moved = registry.with_suffix(".moved")
        shutil.move(registry, moved)
        await tested.checked()
        assert tested.policies.loaded is before
        shutil.move(moved, registry)
        await tested.checked()
        assert isinstance(tested.policies.loaded.by_version[[*before.by_version][1]], LearnedPolicy)
        assert fetched == [MLFLOW] * 2

    log = refreshing(sources(MLFLOW, tracking_uri=uri), steps)
    assert events(log) == ["policies_loaded", "policies_not_loaded", "policies_loaded"]


def test_a_damaged_registry_is_a_configuration_error(tmp_path: Path) -> None:
    registry = tmp_path / "mlflow.db"
    registry.write_bytes(b"x" * 5_000)
    with pytest.raises(ConfigurationError, match=r"^SCORE_POLICIES: the policy models:/tips@champion is not in MLflow"):
        sources(MLFLOW, tracking_uri=f"sqlite:///{registry}").load()

"""The ranking policies of a running service: loaded from their sources, and read again when these change."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from ml.platform.background import run_in_daemon_thread
from ml.platform.errors import FieldError, PolicyReloadFailed, UnprocessableRequest
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import AbsentPolicyError, AbsentRegistryError, RankingPolicy, UnusablePolicyError
from ml.registry.policies import LearnedPolicy, Ranker, UniformRanker, policy_revision, read_policy

log = structlog.get_logger()

_UNIFORM = UniformRanker()

REFRESH_SECONDS = 2.0
"""The interval at which the sources are checked for changes."""

MAX_SHOWN_LENGTH = 64
"""The number of characters of an unknown version that an error shows."""


@dataclass(frozen=True, slots=True)
class LoadedPolicies:
    """The policies that a request may name, by version, `uniform` first, and the one of requests that name none.

    `absent`: the sources of SCORE_POLICIES whose alias does not exist now.
    """

    default: Ranker
    by_version: Mapping[str, Ranker]
    absent: tuple[str, ...] = ()

    def resolve(self, version: str | None) -> Ranker:
        """Return the policy of that version, or the default for None.

        Raises UnprocessableRequest, naming the loaded versions, if that version is not loaded.
        """
        if version is None:
            return self.default
        if policy := self.by_version.get(version):
            return policy
        loaded = tuple(self.by_version)
        detail = f"should be one of {', '.join(loaded)}"
        raise UnprocessableRequest(
            f"The ranking policy {version[:MAX_SHOWN_LENGTH]!r} is not loaded; it {detail}.",
            errors=[FieldError("#/policy", detail, loaded)],
        )


@dataclass(frozen=True, slots=True)
class _Content:
    """The content of a source at a revision: a policy, or the reason why it is none."""

    revision: str | None
    policy: LearnedPolicy | UnusablePolicyError


class PolicySources:
    """The sources of SCORE_POLICY and SCORE_POLICIES, and the policies that were last loaded from all of them."""

    def __init__(self, default: str | None, others: Sequence[str], tracking_uri: str) -> None:
        """Take sources as in `validate_policy_source`; `default`: that of the default policy, None for `uniform`."""
        self._default = default
        self._others = others
        self._tracking_uri = tracking_uri
        self._contents: dict[str, _Content] = {}
        self.loaded = _loaded(_UNIFORM, {})

    def __bool__(self) -> bool:
        """Whether there is a source."""
        return bool(self._default or self._others)

    def load(self, *, anew: bool = False) -> LoadedPolicies:
        """Load the policies of all sources together; without `anew`, only changed sources are read.

        Of SCORE_POLICIES, an alias that does not exist is left out, and so are all before the registry exists. Raises
        ConfigurationError if another source cannot be used; then `loaded` stays as it is. It may take seconds, and does
        not run twice at the same time.
        """
        if anew:
            self._contents.clear()
        default: Ranker = _UNIFORM
        if self._default:
            try:
                default = self._read(self._default)
            except UnusablePolicyError as error:
                raise ConfigurationError(f"SCORE_POLICY: the policy {self._default} {error}.") from None
        others = {source: self._load_other(source) for source in self._others}
        self.loaded = _loaded(default, others)
        return self.loaded

    def _load_other(self, source: str) -> LearnedPolicy | None:
        """Return the policy at a source of SCORE_POLICIES; None if it is absent. Raises ConfigurationError."""
        try:
            return self._read(source)
        except AbsentPolicyError:
            return None
        except UnusablePolicyError as error:
            if isinstance(error, AbsentRegistryError) and not self._contents:
                return None
            raise ConfigurationError(f"SCORE_POLICIES: the policy {source} {error}.") from None

    def _read(self, source: str) -> LearnedPolicy:
        # The revision first: if the source changes meanwhile, the next check sees another one and reads it again.
        revision = policy_revision(source, self._tracking_uri)
        content = self._contents.get(source)
        if content is None or revision is None or content.revision != revision:
            content = _Content(revision, _parse(read_policy(source, self._tracking_uri)))
            self._contents[source] = content
        if isinstance(content.policy, UnusablePolicyError):
            raise content.policy
        return content.policy


def _parse(blob: bytes) -> LearnedPolicy | UnusablePolicyError:
    try:
        return LearnedPolicy(RankingPolicy.from_bytes(blob))
    except UnusablePolicyError as error:
        return error


def _loaded(default: Ranker, others: Mapping[str, Ranker | None]) -> LoadedPolicies:
    """Return the loaded policies. `others`: by source, None for one that is absent."""
    policies = (_UNIFORM, default, *filter(None, others.values()))
    absent = tuple(source for source, policy in others.items() if policy is None)
    return LoadedPolicies(default, {policy.version: policy for policy in policies}, absent)


class ActivePolicies:
    """The policies in use: replaced together, by a request to reload them and when a source changes.

    A request that has resolved its policy keeps it. Whatever cannot be used leaves everything as it is.
    """

    def __init__(self, sources: PolicySources) -> None:
        self._sources = sources
        self._lock = asyncio.Lock()
        self._failure = ""

    @property
    def loaded(self) -> LoadedPolicies:
        """The policies that requests may name now."""
        return self._sources.loaded

    async def reload(self) -> LoadedPolicies:
        """Read all sources again. Raises PolicyReloadFailed; then the previous policies stay."""
        async with self._lock:
            try:
                loaded = await run_in_daemon_thread(lambda: self._sources.load(anew=True))
            except ConfigurationError as error:
                self._failure = str(error)
                log.warning("policies_not_loaded", reason=self._failure)
                raise PolicyReloadFailed(self._failure) from None
            self._failure = ""
        _log_loaded(loaded)
        return loaded

    async def keep_current(self, every: float) -> None:
        """Read the sources that have changed, every `every` seconds; log only when the outcome is another one."""
        while True:
            await asyncio.sleep(every)
            async with self._lock:
                before, failure_before = self.loaded, self._failure
                try:
                    loaded = await run_in_daemon_thread(self._sources.load)
                    self._failure = ""
                except ConfigurationError as error:
                    self._failure = str(error)
                    if self._failure != failure_before:
                        log.warning("policies_not_loaded", reason=self._failure)
                    continue
                if failure_before or _versions(loaded) != _versions(before):
                    _log_loaded(loaded)


def _versions(policies: LoadedPolicies) -> tuple[str, ...]:
    return policies.default.version, *policies.by_version, *policies.absent


def _log_loaded(policies: LoadedPolicies) -> None:
    names = [f"{policy.name} {version}" for version, policy in policies.by_version.items()]
    log.info("policies_loaded", default=policies.default.version, policies=names, absent=[*policies.absent])

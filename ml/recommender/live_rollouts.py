"""The state of rollouts that is effective in this process, followed from the event log and from serving's catalogue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from ml.experiments.rollout_state import Catalogue, RolloutEvent, RolloutState, effective, fold
from ml.platform.background import BackgroundTasks
from ml.platform.clock import Clock
from ml.platform.errors import RolloutConflict, StorageUnavailable, TipsError
from ml.recommender.serving_client import ServingClient
from ml.rollouts.new_events import champion_of_environment
from ml.store.rollouts import RolloutLog

log = structlog.get_logger()

POLL_SECONDS = 2.0
"""The interval at which the event log and the catalogue are read: an event is effective within 5 s everywhere."""


class LiveRollouts:
    """Follows the event log and serving's catalogue.

    The log is folded as far as serving lists the versions. While one of both cannot be read, its last content is used;
    before serving has answered for the first time, all events take effect.
    """

    def __init__(
        self,
        rollout_log: RolloutLog,
        serving: ServingClient,
        *,
        decides_prompts: bool,
        first_champion: str | None,
        clock: Clock,
    ) -> None:
        """`decides_prompts`: whether prompt versions follow rollouts. `first_champion`: None: serving's default."""
        self._log = rollout_log
        self._serving = serving
        self._decides_prompts = decides_prompts
        self._first_champion = first_champion
        self._clock = clock
        self._events: list[RolloutEvent] = []
        self._catalogue: Catalogue | None = None
        self._failing: set[str] = set()
        self._unlisted: frozenset[str] = frozenset()
        self.state = RolloutState()
        """The effective state; it is replaced as a whole, and never changed."""

    @asynccontextmanager
    async def keep_current(self, background: BackgroundTasks, *, every: float) -> AsyncIterator[None]:
        """Follow both sources, read every `every` seconds, until the block ends; the block begins with the first state.

        Raises StorageUnavailable if the log cannot be read the first time.
        """
        await self._read_events()
        await self._read_catalogue()
        await self._name_first_champion()
        async with (
            background.run("rollouts", self._follow_events(every)),
            background.run("catalogue", self._follow_catalogue(every)),
        ):
            yield

    # In two tasks, so that a serving that hangs does not delay events.

    async def _follow_events(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await self._read_events()
            except StorageUnavailable as error:
                self._report("rollouts", error)
            else:
                self._report("rollouts", None)

    async def _follow_catalogue(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            await self._read_catalogue()
            try:
                await self._record_champion()
            except StorageUnavailable as error:
                self._report("rollouts", error)

    async def _read_events(self) -> None:
        read = await self._log.events(after=self._last_event)
        # The other task may have read the same ones in the meantime.
        new = [event for event in read if event.id > self._last_event]
        if new:
            self._events += new
            self._update()

    async def _read_catalogue(self) -> None:
        if not self._events and not self._decides_prompts:
            return
        try:
            catalogue = await self._serving.catalogue()
        except TipsError as error:
            self._report("catalogue", error)
            return
        self._report("catalogue", None)
        if catalogue != self._catalogue:
            self._catalogue = catalogue
            self._update()

    def _update(self) -> None:
        catalogue, before = self._catalogue, self.state
        self.state = effective(self._events, catalogue) if catalogue else fold(self._events)
        if self.state.event != before.event:
            log.info("rollouts_effective", rollout_event=self.state.event)
        unlisted = frozenset[str]()
        if catalogue:
            state = fold(self._events)
            positions = [
                position
                for track in (state.prompt, state.policy)
                for position in (track.champion, *track.positions.values())
            ]
            unlisted = frozenset(
                each.version for each in positions if each and not catalogue.lists(each.kind, each.version, each.digest)
            )
        if unlisted - self._unlisted:
            log.warning(
                "rollout_not_effective",
                versions=sorted(unlisted),
                reason="serving does not have them, with this digest",
            )
        self._unlisted = unlisted

    async def _name_first_champion(self) -> None:
        """Record the first champion, or warn if TIP_PROMPT_VERSION names another version than the champion."""
        if await self._record_champion() or not self._first_champion:
            return
        champion = self.state.prompt.champion
        if self._decides_prompts and champion and champion.version != self._first_champion:
            log.warning(
                "first_champion_ignored",
                prompt_version=self._first_champion,
                champion=champion.version,
                reason="TIP_PROMPT_VERSION names the first champion only; rollouts have decided since",
            )

    async def _record_champion(self) -> bool:
        """Record a champion if there is none whose version serving has; return whether this call did.

        That is the first one, or the one whose content, and so its digest, has changed with a release of serving.
        Raises StorageUnavailable.
        """
        while self._decides_prompts and self._catalogue and self.state.prompt.champion is None:
            before, known = fold(self._events).prompt.champion, self._catalogue.prompts
            named = self._first_champion or self._catalogue.default_prompt_version
            version = before.version if before and before.version in known else named
            if version not in known:
                return False
            source = "TIP_PROMPT_VERSION" if self._first_champion else "the default of serving"
            reason = "serving has another content of the champion" if before else f"the first champion: {source}"
            try:
                event = champion_of_environment("prompt", version, known[version], reason=reason, at=self._clock())
                await self._log.append(event, expected=self._last_event)
            except RolloutConflict:  # another replica was faster
                await self._read_events()
            else:
                await self._read_events()
                return True
        return False

    @property
    def _last_event(self) -> int:
        return self._events[-1].id if self._events else 0

    def _report(self, source: str, error: TipsError | None) -> None:
        """Log when a source cannot be read any more, and when it can be read again."""
        if error and source not in self._failing:
            self._failing.add(source)
            log.warning("rollouts_not_read", source=source, outcome=error.slug, reason="the last state stays effective")
        elif error is None and source in self._failing:
            self._failing.remove(source)
            log.info("rollouts_read_again", source=source)

"""Idempotency keys: which request with a key is executed, which one gets a stored answer, and which one is refused.

A row of `idempotency_keys` belongs to one request, however often it is sent. A request for a tip claims the key before
the model is called; the claim is a lease, so that a retry can take over after the process has died. The row keeps what
was drawn, so that every attempt writes the same decision. The answer is added in the transaction that stores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, bindparam, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ml.platform.errors import IdempotencyKeyReused, RequestInProgress
from ml.platform.idempotency_key import IdempotencyKey
from ml.store.database import Database
from ml.store.tables import idempotency_keys, tip_scores

RETENTION = timedelta(hours=24)
"""How long a key is kept."""

_MAX_EXPIRED = 1_000
"""The maximum number of expired keys that one transaction deletes."""

_KEYS = idempotency_keys.c


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """The claim of one attempt at a request. `id`: different for each attempt.

    Of a request for a tip: `user_id`, `lease`, and `draw` (JSON), which is ignored if an earlier attempt has stored
    one. Of a reaction: `tip_id`; it needs no lease, since it is answered in the transaction that claims the key.
    """

    key: IdempotencyKey
    user_id: str | None = None
    draw: Any = None
    lease: timedelta = timedelta()
    tip_id: UUID | None = None
    id: UUID = field(default_factory=uuid4)

    def row(self, now: datetime) -> dict[str, Any]:
        """Return the row of a key that no other attempt has claimed."""
        return {
            "key_hash": self.key.key_hash,
            "body_hash": self.key.body_hash,
            "created_at": now,
            "claim_id": self.id,
            "leased_until": now + self.lease if self.lease else None,
            "user_id": self.user_id,
            "draw": self.draw,
            "tip_id": self.tip_id,
            "reaction_result": None,
        }


_SELECT = (
    select(idempotency_keys)
    .where(_KEYS.key_hash.in_(bindparam("hashes", expanding=True)))
    .order_by(_KEYS.key_hash)
    .with_for_update()
)
_CHANGING = [column.name for column in _KEYS if not column.primary_key]
_UPDATE = (
    update(idempotency_keys)
    .where(_KEYS.key_hash == bindparam("of_key"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)
_EXPIRED = (
    select(_KEYS.key_hash)
    .where(_KEYS.created_at <= bindparam("before"))
    .limit(_MAX_EXPIRED)
    .with_for_update(skip_locked=True)
)
_DELETE_EXPIRED = delete(idempotency_keys).where(_KEYS.key_hash.in_(_EXPIRED))


class LockedKeys:
    """The rows of keys that a transaction has locked. Changes are written by `IdempotencyKeys.save`."""

    def __init__(self, rows: Mapping[str, dict[str, Any]], now: datetime) -> None:
        self.rows = rows
        self.now = now
        self.changed: dict[str, dict[str, Any]] = {}

    def claim(self, claim: KeyClaim) -> dict[str, Any]:
        """Return the row of the key, which has the id of the claim if the key was unused or has expired.

        Raises IdempotencyKeyReused when the key belongs to a request with another body.
        """
        row = self.rows.get(claim.key.key_hash)
        if row is None:  # another transaction has just deleted it, since it had expired
            raise _in_progress()
        if row["claim_id"] != claim.id and row["created_at"] <= self.now - RETENTION:
            self._change(row, claim.row(self.now))
        if row["body_hash"] != claim.key.body_hash:
            raise IdempotencyKeyReused("This Idempotency-Key was used for a request with another body.")
        return row

    def reserve(self, claim: KeyClaim) -> dict[str, Any]:
        """Return the row of a request for a tip: with `tip_id` if it has been answered, otherwise leased to the claim.

        Raises RequestInProgress while another attempt has the lease, and IdempotencyKeyReused.
        """
        row = self.claim(claim)
        if row["tip_id"] is None and row["claim_id"] != claim.id:
            if row["leased_until"] and row["leased_until"] > self.now:
                raise _in_progress()
            self._change(row, {"claim_id": claim.id, "leased_until": self.now + claim.lease})
        return row

    def complete(self, claim: KeyClaim, tip_id: UUID) -> None:
        """Answer a request with a tip. Raises RequestInProgress when the claim has lost its lease to another one."""
        self._change(self.check(claim), {"tip_id": tip_id, "leased_until": None, "draw": None})

    def check(self, claim: KeyClaim) -> dict[str, Any]:
        """Return the row of a claim. Raises RequestInProgress when the claim has lost its lease to another one."""
        row = self.rows.get(claim.key.key_hash)
        if row is None or row["claim_id"] != claim.id:
            raise _in_progress()
        return row

    def release(self, claim: KeyClaim) -> None:
        """End the lease of a claim, unless the request has been answered; the row keeps the draw for a retry."""
        row = self.rows.get(claim.key.key_hash)
        if row and row["claim_id"] == claim.id and row["tip_id"] is None:
            self._change(row, {"leased_until": None})

    def answer_reaction(self, claim: KeyClaim, result: Mapping[str, Any]) -> None:
        """Store the result of a reaction."""
        self._change(self.rows[claim.key.key_hash], {"reaction_result": result})

    def _change(self, row: dict[str, Any], values: Mapping[str, Any]) -> None:
        row.update(values)
        self.changed[row["key_hash"]] = row


class IdempotencyKeys:
    """The table `idempotency_keys`, changed in the caller's transaction.

    Every transaction locks tips before keys and keys before counters, and each kind in the same order, so that two
    transactions cannot deadlock.
    """

    def __init__(self, database: Database) -> None:
        # Built once, so that SQLAlchemy's statement cache finds it by identity.
        self._insert = database.upsert(idempotency_keys).on_conflict_do_nothing()

    async def lock(
        self, connection: AsyncConnection, new: Sequence[KeyClaim], held: Sequence[KeyClaim], now: datetime
    ) -> LockedKeys:
        """Lock the rows of the keys of all claims; insert a row for a `new` claim whose key is unused."""
        if not new and not held:
            return LockedKeys({}, now)
        if new:
            rows = sorted((claim.row(now) for claim in new), key=lambda row: str(row["key_hash"]))
            await connection.execute(self._insert, rows)
        hashes = {claim.key.key_hash for claim in (*new, *held)}
        found = (await connection.execute(_SELECT, {"hashes": [*hashes]})).mappings()
        return LockedKeys({row["key_hash"]: dict(row) for row in found}, now)

    async def save(self, connection: AsyncConnection, locked: LockedKeys) -> None:
        """Write the changes of locked rows, and delete expired rows."""
        if locked.changed:
            changes = [
                {"of_key": key_hash, **{f"new_{name}": row[name] for name in _CHANGING}}
                for key_hash, row in locked.changed.items()
            ]
            await connection.execute(_UPDATE, changes)
        if locked.rows:
            # Without waiting for locks, since it locks rows in no particular order.
            await connection.execute(_DELETE_EXPIRED, {"before": locked.now - RETENTION})

    async def remove_of_tips(self, connection: AsyncConnection, tip_ids: Sequence[UUID]) -> None:
        """Delete the keys of requests that were answered with these tips, and of reactions to them."""
        await _remove(connection, _KEYS.tip_id.in_(tip_ids))

    async def remove_of_user(self, connection: AsyncConnection, user_id: str) -> None:
        """Delete the keys of a user's requests for tips, and of the reactions to the user's tips."""
        tips_of_user = select(tip_scores.c.tip_id).where(tip_scores.c.user_id == user_id)
        await _remove(connection, or_(_KEYS.user_id == user_id, _KEYS.tip_id.in_(tips_of_user)))

    async def remove_old(self, connection: AsyncConnection, before: datetime, now: datetime) -> None:
        """Delete the expired keys, and those of requests that arrived before a time and ended without an answer."""
        has_ended = or_(_KEYS.leased_until.is_(None), _KEYS.leased_until <= now)
        without_answer = and_(_KEYS.created_at < before, _KEYS.tip_id.is_(None), has_ended)
        await _remove(connection, or_(_KEYS.created_at <= now - RETENTION, without_answer))


async def _remove(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    locked = select(_KEYS.key_hash).where(condition).order_by(_KEYS.key_hash).with_for_update()
    if (await connection.execute(locked)).first():
        await connection.execute(delete(idempotency_keys).where(condition))


def _in_progress() -> RequestInProgress:
    return RequestInProgress("A request with this Idempotency-Key has not ended yet.", retry_after=1)

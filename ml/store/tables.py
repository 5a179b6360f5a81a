"""The tables. Times are in UTC; SQLite stores no time zone, so it is added on reading."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    false,
)


class UtcTime(TypeDecorator[datetime]):
    """A point in time in UTC; a naive datetime is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time must have a time zone")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


metadata = MetaData()

tip_scores = Table(
    "tip_scores",
    metadata,
    Column("tip_id", Uuid, primary_key=True),
    Column("user_id", String(128), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False, index=True),
    # How the prompt version was drawn: without the propensity, nothing can be learned from the row.
    Column("policy", String(40), nullable=False),
    Column("policy_version", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("probability", Float, nullable=False),
    Column("prompt_version_asked", String(64)),
    # The answer of serving.
    Column("generation_id", String(64), nullable=False),
    Column("prompt_version", String(64), nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("fallback", Boolean, nullable=False),
    Column("signals", JSON, nullable=False),
    Column("segments", JSON, nullable=False),
    Column("tip", Text, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("ms", Integer, nullable=False),
    # False for a candidate that was not chosen.
    Column("shown", Boolean, nullable=False),
    # True for a tip that was written for a simulated user.
    Column("simulated", Boolean, nullable=False),
    # The effective reaction.
    Column("reaction", String(40)),
    Column("reward", Float),
    Column("reacted_at", UtcTime),
    # The decision among several candidates: all rows of one decision have the same `decision_id`, the tip_id of
    # the first candidate. `candidates`: the ids of all candidates, in order; NULL if there was only one.
    Column("decision_id", Uuid),
    Column("score", Float),
    Column("score_probability", Float),
    Column("score_policy", String(64)),
    Column("score_policy_version", String(64)),
    Column("candidates", JSON(none_as_null=True)),
    # The aggregates of the user that the ranking used.
    Column("aggregates", JSON(none_as_null=True)),
    # Whether an exposure was received within the reaction window; and the reward at the end of that window, which is of
    # the effective one among the reactions that were received by then.
    Column("seen", Boolean, nullable=False, server_default=false()),
    Column("reward_in_window", Float),
    # With rollouts: the event that decided the prompt version; the ranking policy that was drawn, from which
    # distribution, and the event that decided it.
    Column("prompt_event", Integer),
    Column("policy_asked", String(64)),
    Column("policy_options", JSON(none_as_null=True)),
    Column("policy_event", Integer),
    # The time as of which the aggregates were computed; NULL without aggregates.
    Column("aggregates_at", UtcTime),
)

reactions = Table(
    "reactions",
    metadata,
    Column("tip_id", Uuid, ForeignKey("tip_scores.tip_id"), primary_key=True),
    Column("at", UtcTime, primary_key=True),
    Column("reaction", String(40), primary_key=True),
    Column("reward", Float, nullable=False),
    Column("received_at", UtcTime, nullable=False),
)

# The first report that the user has seen a tip. `at`: when, as the caller says.
exposures = Table(
    "exposures",
    metadata,
    Column("tip_id", Uuid, ForeignKey("tip_scores.tip_id"), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("received_at", UtcTime, nullable=False),
)

# The draws for which no tip was written. `tip_id`: the id that the tip would have had.
generation_failures = Table(
    "generation_failures",
    metadata,
    Column("tip_id", Uuid, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("user_id", String(128), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("policy", String(40), nullable=False),
    Column("policy_version", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("probability", Float, nullable=False),
    Column("prompt_version_asked", String(64)),
    Column("error", String(64), nullable=False),
    Column("segments", JSON, nullable=False),
    Column("simulated", Boolean, nullable=False),
)

# The counters of rollup.py, changed in the transaction of the rows that they count. `window_seconds`: the reaction
# window that an hour was counted with; 0 in counters of a release without it, which are rebuilt at once.
reward_hours = Table(
    "reward_hours",
    metadata,
    Column("segment", String(64), primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("window_seconds", Integer, primary_key=True, autoincrement=False),
    Column("prompt_version", String(64), primary_key=True),
    Column("prompt_digest", String(64), primary_key=True),
    Column("fallback", Boolean, primary_key=True),
    Column("shown", Boolean, primary_key=True),
    Column("dependent", Boolean, primary_key=True),
    Column("seen", Boolean, primary_key=True),
    Column("reaction", String(40), primary_key=True),
    Column("tips", BigInteger, nullable=False),
    Column("reward", Float, nullable=False),
    Column("reward_squared", Float, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("ms", BigInteger, nullable=False),
    Column("simulated", BigInteger, nullable=False),
)

draw_hours = Table(
    "draw_hours",
    metadata,
    Column("segment", String(64), primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("window_seconds", Integer, primary_key=True, autoincrement=False),
    Column("distribution", String(64), primary_key=True),
    Column("prompt_version", String(64), primary_key=True),
    Column("prompt_digest", String(64), primary_key=True),
    Column("outcome", String(16), primary_key=True),
    Column("seen", Boolean, primary_key=True),
    Column("tips", BigInteger, nullable=False),
    Column("reward", Float, nullable=False),
    Column("reward_squared", Float, nullable=False),
)

# As `draw_hours`, for ranking policies that were drawn from several.
ranking_hours = Table(
    "ranking_hours",
    metadata,
    Column("segment", String(64), primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("window_seconds", Integer, primary_key=True, autoincrement=False),
    Column("distribution", String(64), primary_key=True),
    Column("policy_version", String(64), primary_key=True),
    Column("outcome", String(16), primary_key=True),
    Column("seen", Boolean, primary_key=True),
    Column("tips", BigInteger, nullable=False),
    Column("reward", Float, nullable=False),
    Column("reward_squared", Float, nullable=False),
)

# The distributions that prompt versions and ranking policies were drawn from. `id`: the SHA-256 of `options` as
# canonical JSON.
distributions = Table(
    "distributions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("options", JSON, nullable=False),
)

# The answers to requests with an Idempotency-Key; see idempotency.py.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False, index=True),
    # The claim that may answer the request, and until when.
    Column("claim_id", Uuid, nullable=False),
    Column("leased_until", UtcTime),
    # Of a request for a tip: its user, and what was drawn for it.
    Column("user_id", String(128)),
    Column("draw", JSON(none_as_null=True)),
    # The answer: the tip that was shown; or the result of a reaction to this tip.
    Column("tip_id", Uuid),
    Column("reaction_result", JSON(none_as_null=True)),
)

# The append-only log of rollouts; see rollouts.py. The primary key is the compare-and-swap: ids have no gaps.
rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("rollout", Integer, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("version", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("action", String(16), nullable=False),
    Column("from_stage", String(16), nullable=False),
    Column("to_stage", String(16), nullable=False),
    Column("share", Float, nullable=False),
    Column("segment", String(64), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("gated", Boolean, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
)

# The newest figures of each day about a rollout; see evidence.py.
rollout_evidence = Table(
    "rollout_evidence",
    metadata,
    Column("rollout", Integer, primary_key=True, autoincrement=False),
    Column("name", String(64), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("figures", JSON, nullable=False),
)

# What versions in shadow wrote or ranked for real decisions, and what the live version did; see shadows.py. In tables
# of their own, so that no count, rate, aggregate or export of tips includes them.
shadow_tips = Table(
    "shadow_tips",
    metadata,
    Column("tip_id", Uuid, primary_key=True),
    Column("rollout", Integer, primary_key=True, autoincrement=False),
    Column("user_id", String(128), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("prompt_version", String(64), nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("model", String(200)),
    Column("tip", Text),
    Column("failed", Boolean, nullable=False),
    Column("error", String(64)),
    Column("ms", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("live_version", String(64), nullable=False),
    Column("live_failed", Boolean, nullable=False),
    Column("live_ms", Integer, nullable=False),
    Column("live_tokens", Integer, nullable=False),
)

shadow_rankings = Table(
    "shadow_rankings",
    metadata,
    Column("decision_id", Uuid, primary_key=True),
    Column("rollout", Integer, primary_key=True, autoincrement=False),
    Column("user_id", String(128), nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False, index=True),
    Column("policy_version", String(64), nullable=False),
    # From each candidate's tip_id to its probability and its score; NULL if the policy did not answer.
    Column("probabilities", JSON(none_as_null=True)),
    Column("scores", JSON(none_as_null=True)),
    Column("error", String(64)),
    Column("ms", Integer, nullable=False),
)

# Which replica does a task that only one may do, and until when; see leases.py.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", UtcTime, nullable=False),
)

# The events that the webhook has not received yet; see outbox.py.
webhook_outbox = Table(
    "webhook_outbox",
    metadata,
    Column("event_id", Integer, primary_key=True, autoincrement=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", UtcTime, nullable=False),
)

# The revision of the tips of each day (since 1970, UTC), with their reactions and exposures: a random id, replaced in
# each transaction that changes any of them. Two exports of a day with the same revision are the same.
day_revisions = Table(
    "day_revisions",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("revision", Uuid, nullable=False),
)

# The versions that a batch job proposes for a rollout, which begins when an operator or the monitor starts it.
rollout_proposals = Table(
    "rollout_proposals",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("at", UtcTime, nullable=False),
    # Where serving finds the version, such as models:/tips/3.
    Column("source", String(400), nullable=False),
    Column("evidence", JSON, nullable=False),
)

# The newest figures of batch jobs about each day.
batch_reports = Table(
    "batch_reports",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("name", String(64), primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("figures", JSON, nullable=False),
)


def as_row(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with slots by name, uncopied (`asdict` copies deeply, which takes long)."""
    return {name: getattr(value, name) for name in value.__slots__}

"""The aggregates of decisions in SQL, by DuckDB's ASOF join: a second implementation, which shares no code."""

from pathlib import Path

_SEEN = """
SELECT tip_id, user_id, created, greatest(created, epoch_us(received_at)) AS known
FROM tips JOIN read_parquet('{folder}/exposures/*/*.parquet', hive_partitioning = false) USING (tip_id)
WHERE epoch_us(received_at) <= created + {window}
"""
_SQL = """
WITH tips AS (
    SELECT tip_id, user_id, epoch_us(created_at) AS created
    FROM read_parquet('{folder}/tip_scores/*/*.parquet', hive_partitioning = false)
    WHERE shown
),
counted AS (
    {counted}
),
effective AS (
    SELECT
        tip_id, epoch_us(received_at) AS received,
        CAST(round(16384 * arg_max(reward, ("at", reaction)) OVER history) AS BIGINT) AS reward
    FROM read_parquet('{folder}/reactions/*/*.parquet', hive_partitioning = false)
    WINDOW history AS (PARTITION BY tip_id ORDER BY received_at)
),
changes AS (
    SELECT
        tip_id, received,
        reward - lag(reward, 1, 0) OVER (PARTITION BY tip_id ORDER BY received) AS change
    FROM effective
),
rewards AS (
    SELECT user_id, greatest(received, created + {window}) AS entry, created + {month} AS leaving, change
    FROM changes JOIN counted USING (tip_id)
    WHERE change <> 0 AND greatest(received, created + {window}) < created + {month}
),
events AS (
    SELECT user_id, known AS t, 1 AS recent, 0 AS old, 0 AS mature, 0 AS reward
    FROM counted WHERE known < created + {week}
    UNION ALL SELECT user_id, created + {week}, -1, 0, 0, 0 FROM counted WHERE known < created + {week}
    UNION ALL SELECT user_id, known, 0, 1, 0, 0 FROM counted WHERE known < created + {month}
    UNION ALL SELECT user_id, created + {month}, 0, -1, 0, 0 FROM counted WHERE known < created + {month}
    UNION ALL SELECT user_id, created + {window}, 0, 0, 1, 0 FROM counted WHERE {window} < {month}
    UNION ALL SELECT user_id, created + {month}, 0, 0, -1, 0 FROM counted WHERE {window} < {month}
    UNION ALL SELECT user_id, entry, 0, 0, 0, change FROM rewards
    UNION ALL SELECT user_id, leaving, 0, 0, 0, -change FROM rewards
),
instants AS (
    SELECT user_id, t, sum(recent) AS recent, sum(old) AS old, sum(mature) AS mature, sum(reward) AS reward
    FROM events GROUP BY user_id, t
),
running AS (
    SELECT
        user_id, t, sum(recent) OVER line AS recent, sum(old) OVER line AS old, sum(mature) OVER line AS mature,
        sum(reward) OVER line AS reward
    FROM instants WINDOW line AS (PARTITION BY user_id ORDER BY t)
)
SELECT
    tip_id,
    CASE WHEN mature > 0 THEN CAST(reward AS DOUBLE) / CAST(mature * 16384 AS DOUBLE) END AS reward_rate_30d,
    CASE WHEN old > 0 THEN CAST(recent AS DOUBLE) END AS tips_7d
FROM (SELECT tip_id, user_id, created - created % {day} AS as_of FROM tips) AS decisions
ASOF LEFT JOIN running ON decisions.user_id = running.user_id AND decisions.as_of > running.t
"""


def decision_aggregates(folder: Path, window_microseconds: int, *, seen_only: bool) -> str:
    """Return the query for the aggregates of all decisions in the offline store in a folder."""
    day = 86_400_000_000
    return _SQL.format(
        folder=folder,
        window=window_microseconds,
        day=day,
        week=7 * day,
        month=30 * day,
        counted=_SEEN.format(folder=folder, window=window_microseconds)
        if seen_only
        else "SELECT *, created AS known FROM tips",
    )

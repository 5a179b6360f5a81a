"""Count dependent tips apart, so that verdicts can leave them out.

The column `dependent` of the hourly counts becomes a part of their key; it was a sum. During the upgrade, recommenders
of the previous release cannot store tips.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_KEY = ("segment", "hour", "prompt_version", "prompt_digest", "fallback", "shown", "reaction")
_SUMS = ("tips", "reward", "reward_squared", "input_tokens", "output_tokens", "ms", "simulated")
_BATCH = 1_000


def upgrade() -> None:
    """Apply."""
    op.rename_table("reward_hours", "old_reward_hours")
    table = _create((*_KEY[:-1], "dependent", "reaction"), sa.Column("dependent", sa.Boolean))
    old = sa.table("old_reward_hours", *map(sa.column, (*_KEY, *_SUMS)))
    rows = sa.select(*(old.c[name] for name in (*_KEY, *_SUMS)), sa.false())
    op.execute(table.insert().from_select([*_KEY, *_SUMS, "dependent"], rows))
    op.drop_table("old_reward_hours")
    _move_dependent_tips(table)


def downgrade() -> None:
    """Revert."""
    op.rename_table("reward_hours", "old_reward_hours")
    table = _create(_KEY, sa.Column("dependent", sa.BigInteger, nullable=False, server_default="0"))
    old = sa.table("old_reward_hours", *map(sa.column, (*_KEY, *_SUMS)), sa.column("dependent", sa.Boolean))
    dependent = sa.func.sum(sa.case((sa.and_(old.c.dependent, old.c.reaction == ""), old.c.tips), else_=0))
    keys = [old.c[name] for name in _KEY]
    rows = sa.select(*keys, *(sa.func.sum(old.c[name]) for name in _SUMS), dependent).group_by(*keys)
    op.execute(table.insert().from_select([*_KEY, *_SUMS, "dependent"], rows))
    op.drop_table("old_reward_hours")


def _create(key: tuple[str, ...], dependent: "sa.Column[Any]") -> sa.Table:
    return op.create_table(
        "reward_hours",
        sa.Column("segment", sa.String(64)),
        sa.Column("hour", sa.Integer),
        sa.Column("prompt_version", sa.String(64)),
        sa.Column("prompt_digest", sa.String(64)),
        sa.Column("fallback", sa.Boolean),
        sa.Column("shown", sa.Boolean),
        dependent,
        sa.Column("reaction", sa.String(40)),
        sa.Column("tips", sa.BigInteger, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("reward_squared", sa.Float, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("ms", sa.BigInteger, nullable=False),
        sa.Column("simulated", sa.BigInteger, nullable=False),
        # Named, since in PostgreSQL the key of the old table still has its name.
        sa.PrimaryKeyConstraint(*key, name=f"reward_hours_{'dependent' if 'dependent' in key else 'shown'}_pkey"),
    )


def _move_dependent_tips(table: sa.Table) -> None:
    """Subtract the dependent tips from the counters of all tips, and add them to counters of their own."""
    moved: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0] * len(_SUMS))
    for key, sums in _dependent_counts():
        moved[key] = [total + value for total, value in zip(moved[key], sums, strict=True)]
    if not moved:
        return
    connection = op.get_bind()
    rows = [{**_named(_KEY, key), **_named(_SUMS, sums)} for key, sums in moved.items()]
    parameters = [{f"_{name}": value for name, value in row.items()} for row in rows]
    is_row = sa.and_(*(table.c[name] == sa.bindparam(f"_{name}") for name in _KEY))
    less = {name: table.c[name] - sa.bindparam(f"_{name}") for name in _SUMS}
    connection.execute(table.update().where(is_row, ~table.c.dependent).values(less), parameters)
    connection.execute(table.delete().where(~table.c.dependent, table.c.tips == 0))
    connection.execute(table.insert(), [{**row, "dependent": True} for row in rows])


def _dependent_counts() -> Iterator[tuple[tuple[Any, ...], tuple[float, ...]]]:
    """Yield the key of each counter that a dependent tip changed, and by how much."""
    columns: dict[str, sa.types.TypeEngine[Any]] = {
        "created_at": sa.DateTime(timezone=True),
        "segments": sa.JSON(),
        **dict.fromkeys(("prompt_version", "prompt_digest", "reaction", "policy", "score_policy"), sa.String()),
        **dict.fromkeys(("fallback", "shown", "simulated"), sa.Boolean()),
        **dict.fromkeys(("input_tokens", "output_tokens", "ms"), sa.Integer()),
        "reward": sa.Float(),
    }
    tips = sa.table("tip_scores", *(sa.column(name, type_) for name, type_ in columns.items()))
    is_ranked = tips.c.score_policy.not_in(["uniform", "unavailable"])  # NULL is not
    query = sa.select(tips).where(sa.or_(tips.c.policy == "sticky", is_ranked)).execution_options(yield_per=_BATCH)
    for tip in op.get_bind().execute(query).mappings():
        created_at: datetime = tip["created_at"]
        hour = int(created_at.replace(tzinfo=created_at.tzinfo or UTC).timestamp()) // 3600
        variant = (tip["prompt_version"], tip["prompt_digest"], tip["fallback"], tip["shown"])
        for segment in ("", *tip["segments"]):
            tokens = (tip["input_tokens"], tip["output_tokens"], tip["ms"])
            yield (segment, hour, *variant, ""), (1, 0, 0, *tokens, int(tip["simulated"]))
            if tip["reaction"]:
                yield (segment, hour, *variant, tip["reaction"]), (1, tip["reward"], tip["reward"] ** 2, 0, 0, 0, 0)


def _named(names: tuple[str, ...], values: Any) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))

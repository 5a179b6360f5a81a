"""The reference of the recommender benchmark: the shortest program that stores reactions and counts them.

It has the same tables, one session and one commit for each request, and the same SQLite settings, but no stored counts,
no checks, no logs and no metrics. It uses the database `DATABASE_URL` and `CONNECTIONS` connections (by default, as
many as SQLAlchemy's default).
"""

import os
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel
from sqlalchemy import Float, cast, event, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from starlette.types import Receive, Scope, Send

from ml.store import tables
from ml.store.reactions import REACTIONS

LOCK_TIMEOUT_SECONDS = 5


class Model(DeclarativeBase):
    metadata = tables.metadata


class Tip(Model):
    __table__ = tables.tip_scores


class Reaction(Model):
    __table__ = tables.reactions


class ReactionBody(BaseModel):
    tip_id: UUID
    reaction: str


def app() -> FastAPI:
    """Return the program, for `uvicorn --factory`."""
    url = os.environ["DATABASE_URL"]
    connect_args: dict[str, Any] = {"timeout": LOCK_TIMEOUT_SECONDS} if url.startswith("sqlite") else {}
    connections = os.environ.get("CONNECTIONS")
    pool = {"pool_size": int(connections), "max_overflow": 0} if connections else {}
    engine = create_async_engine(url, connect_args=connect_args, **pool)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    if url.startswith("sqlite"):

        @event.listens_for(engine.sync_engine, "connect")
        def set_pragmas(connection: Any, _: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

    app = FastAPI()

    @app.post("/reactions")
    async def react(body: ReactionBody) -> dict[str, Any]:
        now = datetime.now(UTC)
        reward = REACTIONS[body.reaction]
        async with sessions() as session:
            tip: Any = await session.get(Tip, body.tip_id)
            if tip is None:
                raise HTTPException(404)
            session.add(Reaction(tip_id=body.tip_id, at=now, reaction=body.reaction, reward=reward, received_at=now))
            tip.reaction, tip.reward, tip.reacted_at = body.reaction, reward, now
            await session.commit()
        return {"tip_id": body.tip_id, "reaction": body.reaction, "reward": reward}

    @app.get("/rewards")
    async def rewards(
        first: Annotated[date, Query(alias="from")] = date(2000, 1, 1),
        last: Annotated[date, Query(alias="to")] = date(2100, 1, 1),
    ) -> dict[str, Any]:
        tips = tables.tip_scores.c
        start, end = (datetime(day.year, day.month, day.day, tzinfo=UTC) for day in (first, last + timedelta(days=1)))
        query = select(
            tips.prompt_version, func.count(), func.count(tips.reaction), cast(func.sum(tips.reward), Float)
        ).where(tips.created_at >= start, tips.created_at < end)
        async with sessions() as session:
            rows = await session.execute(query.group_by(tips.prompt_version))
            return {
                "variants": [
                    {"prompt_version": prompt_version, "tips": count, "reacted": reacted, "reward": reward}
                    for prompt_version, count, reacted, reward in rows
                ]
            }

    return app


async def store_nothing(_: Scope, receive: Receive, send: Send) -> None:
    """A server that stores nothing and answers immediately."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})

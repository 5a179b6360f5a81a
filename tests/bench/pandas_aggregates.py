"""The aggregates of decisions with pandas, as a program of its own: it runs in an environment that has pandas.

    python tests/bench/pandas_aggregates.py FOLDER RESULT

reads the offline store in FOLDER and writes one Parquet file. As pandas' guide to large data sets recommends, it reads
only the columns that it needs, a file at a time where that is possible, with strings in Arrow's memory, categories and
small integers.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

DAY = 86_400_000_000
WINDOW, WEEK, MONTH = DAY, 7 * DAY, 30 * DAY


def microseconds(times: "pd.Series[pd.Timestamp]") -> "pd.Series[int]":
    return times.astype("datetime64[us, UTC]").astype("int64")


def read(file: Path, *columns: str) -> pd.DataFrame:
    return pd.read_parquet(file, columns=[*columns], dtype_backend="pyarrow")


def day_of(folder: Path, day: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the shown tips of a day, and the changes of their rewards."""
    (tips_file,) = (folder / "tip_scores" / day).glob("part-*.parquet")
    (reactions_file,) = (folder / "reactions" / day).glob("part-*.parquet")
    tips = read(tips_file, "tip_id", "user_id", "created_at", "shown")
    tips = tips[tips["shown"]].drop(columns="shown").reset_index(drop=True)
    tips["user"] = tips.pop("user_id").astype("category")
    tips["created"] = microseconds(tips.pop("created_at"))
    reactions = read(reactions_file, "tip_id", "at", "reaction", "reward", "received_at")
    reactions = reactions.merge(tips.reset_index(names="row")[["tip_id", "row"]], on="tip_id")
    reactions["received"] = microseconds(reactions["received_at"])
    ordered = reactions.sort_values(["at", "reaction"])
    ordered["greatness"] = np.arange(len(ordered))
    reward_of = np.rint(ordered["reward"].to_numpy() * 2**14).astype(np.int64)
    ordered = ordered.sort_values(["row", "received"])
    effective = ordered.groupby("row")["greatness"].cummax()
    ordered["total"] = reward_of[effective.to_numpy()]
    ordered["change"] = ordered["total"] - ordered.groupby("row")["total"].shift(fill_value=0)
    changed = ordered.loc[ordered["change"] != 0, ["row", "received", "change"]].set_index("row")
    changes = changed.join(tips[["user", "created"]])
    return tips, changes.reset_index(drop=True)


def concatenated(frames: list[pd.DataFrame], categories: pd.Index) -> pd.DataFrame:
    for frame in frames:
        frame["user"] = frame["user"].cat.set_categories(categories).cat.codes.astype("int32")
    return pd.concat(frames, ignore_index=True)


def events(user: "pd.Series[int]", at: "pd.Series[int]", **changes: "int | pd.Series[int]") -> pd.DataFrame:
    return pd.DataFrame({"user": user, "at": at, "recent": 0, "old": 0, "mature": 0, "reward": 0} | changes).astype(
        {"recent": "int32", "old": "int32", "mature": "int32", "reward": "int64"}
    )


def main(folder: Path, result: Path) -> None:
    days = sorted(each.name for each in (folder / "tip_scores").iterdir())
    all_tips, all_changes = zip(*(day_of(folder, day) for day in days), strict=True)
    categories = union_categoricals([tips["user"] for tips in all_tips]).categories
    tips, changes = concatenated([*all_tips], categories), concatenated([*all_changes], categories)
    del all_tips, all_changes
    user, created = tips["user"], tips["created"]
    entry = changes["received"].clip(lower=changes["created"] + WINDOW)
    changes = changes.assign(entry=entry)[entry < changes["created"] + MONTH]
    line = pd.concat(
        [
            events(user, created, recent=1, old=1),
            events(user, created + WEEK, recent=-1),
            events(user, created + WINDOW, mature=1),
            events(user, created + MONTH, old=-1, mature=-1),
            events(changes["user"], changes["entry"], reward=changes["change"]),
            events(changes["user"], changes["created"] + MONTH, reward=-changes["change"]),
        ],
        ignore_index=True,
    )
    del changes
    line = line.sort_values(["user", "at"], ignore_index=True)
    sums = ["recent", "old", "mature", "reward"]
    line[sums] = line.groupby("user", sort=False)[sums].cumsum()
    line = line.drop_duplicates(["user", "at"], keep="last").sort_values("at", ignore_index=True)
    tips["as_of"] = tips["created"] // DAY * DAY
    known = pd.merge_asof(
        tips[["user", "as_of", "tip_id"]].sort_values("as_of"),
        line, left_on="as_of", right_on="at", by="user", allow_exact_matches=False,
    )  # fmt: skip
    rate = known["reward"] / (known["mature"] * 2**14)
    pd.DataFrame(
        {
            "tip_id": known["tip_id"],
            "reward_rate_30d": rate.where(known["mature"] > 0),
            "tips_7d": known["recent"].where(known["old"] > 0).astype("float64"),
        }
    ).to_parquet(result, index=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

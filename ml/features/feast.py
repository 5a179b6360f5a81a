"""The users' aggregates for Feast: definitions that follow from `AGGREGATES`, in a registry in the offline store.

Feast reads what the batch jobs write: the table `snapshots` of the offline store with its DuckDB store, and the online
store in Redis, whose layout is Feast's own (`ml.features.feast_layout`). So whoever materializes and whoever reads,
Feast or this project, the values are the same. Feast returns the time of a value online, but not whether it is too
old: this project's readers leave out a value that is older than the `ttl` of its view.

Within the folder `feast` of the offline store are Feast's registry and its `feature_store.yaml`, for
`feast.FeatureStore(repo_path=…)` and the `feast` command.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, Project, RepoConfig
from feast.diff.property_diff import TransitionType
from feast.repo_contents import RepoContents
from feast.types import Float64, String
from feast.value_type import ValueType
from sqlalchemy.exc import SQLAlchemyError

from ml.features.definitions import AGGREGATES
from ml.features.feast_layout import ENTITY, PROJECT, feature_view
from ml.features.offline_store import OfflineStore

FEATURE_SERVICE = "ranking"
"""The feature service with all aggregates, which is what a ranking policy reads."""
SNAPSHOTS = "snapshots"
FOLDER = "feast"
PASSWORD_VARIABLE = "ONLINE_STORE_PASSWORD"  # noqa: S105
"""The environment variable from which Feast takes the password of Redis, since `feature_store.yaml` has none."""

_DEFAULT_REDIS_PORT = 6379


class FeastUnavailable(Exception):
    """Feast cannot use these stores; the message is a sentence without the full stop."""


def apply_definitions(offline: OfflineStore, online_store_url: str) -> list[str]:
    """Register the definitions of all aggregates, and return what that changed, such as `created entity user_id`.

    To do it again changes nothing. Views of aggregates that no longer exist are deleted; what others have added to the
    project is kept. Raises FeastUnavailable for an offline store that is not a folder or an online store that is not
    Redis, and OfflineStoreUnavailable if the folder cannot be written.
    """
    settings = repository_settings(offline, online_store_url)
    offline.write(f"{FOLDER}/feature_store.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    wanted = _definitions(offline)
    try:
        store = FeatureStore(config=RepoConfig(**settings))
        difference, _, _ = store.plan(wanted)
        obsolete = [
            view
            for view in store.list_feature_views()
            if view.batch_source is not None
            and view.batch_source.name == SNAPSHOTS
            and view.name not in {view.name for view in wanted.feature_views}
        ]
        store.apply(
            [*wanted.projects, *wanted.data_sources, *wanted.entities, *wanted.feature_views, *wanted.feature_services],
            objects_to_delete=obsolete,
            partial=False,
        )
    except SQLAlchemyError:
        raise FeastUnavailable(f"Feast's registry {_registry_file(offline)} cannot be read or written") from None
    verbs = {TransitionType.CREATE: "created", TransitionType.UPDATE: "updated"}
    changes = [
        f"{verbs[change.transition_type]} {change.feast_object_type.value} {change.name}"
        for change in difference.feast_object_diffs
        if change.transition_type in verbs
    ]
    return sorted([*changes, *(f"deleted feature view {view.name}" for view in obsolete)])


def repository_settings(offline: OfflineStore, online_store_url: str) -> Mapping[str, Any]:
    """Return the content of `feature_store.yaml`. Raises FeastUnavailable, see `apply_definitions`."""
    if not offline.is_local:
        raise FeastUnavailable("OFFLINE_STORE: must be a folder for Feast, whose registry and DuckDB read local files")
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": {
            "registry_type": "sql",
            "path": f"sqlite:///{_registry_file(offline)}",
            # Otherwise reads fail for a view that the registry says is being materialized.
            "serve_features_while_materializing": True,
        },
        "offline_store": {"type": "duckdb"},
        "online_store": {
            "type": "redis",
            "connection_string": _connection_string(online_store_url),
            "key_ttl_seconds": int(max(each.max_age for each in AGGREGATES.values()).total_seconds()),
            # The keys of a deleted view expire.
            "full_scan_for_deletion": False,
        },
        "entity_key_serialization_version": 3,
    }


def _definitions(offline: OfflineStore) -> RepoContents:
    """Return the entity, a feature view for each aggregate, and the feature service."""
    # The names of the folders and files are those of `OfflineStore`; incomplete files begin with a dot.
    snapshots = FileSource(
        name=SNAPSHOTS, path=f"{_root(offline)}/{SNAPSHOTS}/day=*/part-*.parquet", timestamp_field="computed_at"
    )
    user = Entity(name=ENTITY, join_keys=[ENTITY], value_type=ValueType.STRING)
    views = [
        FeatureView(
            name=feature_view(name),
            entities=[user],
            ttl=aggregate.max_age,
            schema=[Field(name=ENTITY, dtype=String), Field(name=name, dtype=Float64)],
            source=snapshots,
        )
        for name, aggregate in AGGREGATES.items()
    ]
    others: Mapping[str, Sequence[Any]] = {
        kind: [] for kind in ("on_demand_feature_views", "stream_feature_views", "label_views", "permissions")
    }
    return RepoContents(
        projects=[Project(name=PROJECT)],
        data_sources=[snapshots],
        entities=[user],
        feature_views=views,
        feature_services=[FeatureService(name=FEATURE_SERVICE, features=views)],
        **others,
    )


def _root(offline: OfflineStore) -> str:
    return str(Path(offline.files.base_path))


def _registry_file(offline: OfflineStore) -> str:
    return f"{_root(offline)}/{FOLDER}/registry.db"


def _connection_string(url: str) -> str:
    """Return the address of Redis as Feast writes it: without the password, which Feast reads from the environment."""
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss"}:
        raise FeastUnavailable("ONLINE_STORE_URL: must be redis:// or rediss:// for Feast")
    options = {
        "db": parts.path.strip("/") or "0",
        "username": parts.username,
        "password": parts.password and f"${{{PASSWORD_VARIABLE}}}",
        "ssl": "true" if parts.scheme == "rediss" else None,
    }
    given = [f"{name}={value}" for name, value in options.items() if value]
    return ",".join([f"{parts.hostname}:{parts.port or _DEFAULT_REDIS_PORT}", *given])

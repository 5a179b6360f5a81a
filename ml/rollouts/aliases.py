"""The aliases `champion`, `challenger` and `shadow` in MLflow's registry, which mirror the stages of policies.

MLflow has neither compare-and-swap nor a history of aliases, so the events of rollouts are authoritative.
"""

from collections.abc import Callable, Mapping

from ml.experiments.rollout_state import Catalogue, Track
from ml.platform.settings import ConfigurationError

Aliases = Mapping[str, str | None]
"""From each alias to the version of a policy, or to None: no policy has it."""

SetAliases = Callable[[str, Aliases], str | None]
"""Set the aliases of a registered model; return a sentence if that failed."""


def aliases_by_model(track: Track, catalogue: Catalogue) -> Mapping[str, Aliases]:
    """Return the aliases of each registered model, which has the name of its policies.

    A champion that is not one of a model's policies leaves that model its alias `champion`: SCORE_POLICY may name it.
    """
    canary, shadow = track.canaries[-1:], track.shadows[-1:]
    positions = {
        "champion": track.champion,
        "challenger": canary[0] if canary else None,
        "shadow": shadow[0] if shadow else None,
    }
    models: dict[str, dict[str, str | None]] = {}
    for version, name in catalogue.policies.items():
        if version == name:  # the policy without training, which is not registered
            continue
        aliases = models.setdefault(name, {"challenger": None, "shadow": None})
        aliases |= {alias: version for alias, position in positions.items() if position and position.version == version}
    return models


def set_mlflow_aliases(tracking_uri: str) -> SetAliases:
    """Return a function that sets aliases in the registry at `tracking_uri`; it blocks."""

    def set_aliases(name: str, aliases: Aliases) -> str | None:
        try:
            from ml.registry import models  # MLflow takes seconds to import, and is an extra
        except ConfigurationError as error:
            return str(error)
        try:
            models.set_aliases(name, aliases, tracking_uri)
        except models.RegistryError as error:
            return str(error)
        return None

    return set_aliases

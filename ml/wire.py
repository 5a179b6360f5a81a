"""What both services' bodies are made of: the strict model, and the signals, which come from their definitions."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, JsonValue, create_model, model_validator
from pydantic_core import PydanticCustomError

from ml.features.definitions import SIGNALS


class StrictModel(BaseModel):
    """A body in which nothing is guessed: no coercion, and an unknown field is an error that names the known ones."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields_only(cls, data: Any) -> Any:
        unknown = [str(name) for name in data if name not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            known = list(cls.model_fields)
            raise PydanticCustomError(
                "unknown_fields",
                "is not known; the known ones are {names}",
                {"names": ", ".join(known), "allowed": known, "unknown": unknown},
            )
        return data

    def known(self) -> dict[str, Any]:
        """Return the fields that were given."""
        return self.model_dump(exclude_none=True)


if TYPE_CHECKING:

    class Signals(StrictModel):
        """What is known about the person."""

else:
    Signals = create_model(
        "Signals",
        __base__=StrictModel,
        __doc__="What is known about the person; leave out what is not known.",
        **{name: (signal.kind.annotation | None, None) for name, signal in SIGNALS.items()},
    )

EXAMPLE_SIGNALS: dict[str, JsonValue] = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}

"""What both services' bodies are made of: the strict model, and the signals, which come from their definitions."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model, model_validator
from pydantic_core import PydanticCustomError

from ml.features.definitions import CANDIDATE, SIGNALS


class StrictModel(BaseModel):
    """A body in which nothing is guessed: no coercion, and an unknown field is an error that names the known ones."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields_only(cls, data: Any) -> Any:
        known = cls.__pydantic_fields__  # what `model_fields` looks up, which takes longer than all of the rest
        if isinstance(data, dict) and not data.keys() <= known.keys():
            unknown = [str(name) for name in data if name not in known]
            raise PydanticCustomError(
                "unknown_fields",
                "is not known; the known ones are {names}",
                {"names": ", ".join(known), "allowed": [*known], "unknown": unknown},
            )
        return data

    def known(self) -> dict[str, Any]:
        """Return the fields that were given, as they are (`model_dump` copies all that is in them)."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,128}$")]
"""A name that a caller gives something, in characters that mean nothing anywhere (RFC 3986, unreserved)."""

if TYPE_CHECKING:

    class Signals(StrictModel):
        """What is known about the person."""

    class Candidate(StrictModel):
        """A tip that could be shown."""

        id: Id

else:
    Signals = create_model(
        "Signals",
        __base__=StrictModel,
        __doc__="What is known about the person; leave out what is not known.",
        **{name: (signal.kind.annotation | None, None) for name, signal in SIGNALS.items()},
    )
    Candidate = create_model(
        "Candidate",
        __base__=StrictModel,
        __doc__="A tip that could be shown: its id, and what is known of it.",
        id=(Id, ...),
        **{name: (kind.annotation | None, None) for name, kind in CANDIDATE.items()},
    )

EXAMPLE_SIGNALS: dict[str, JsonValue] = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}

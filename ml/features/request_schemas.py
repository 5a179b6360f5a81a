"""The request schemas that both services share. Signals and candidates are derived from the feature definitions."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model

from ml.features.definitions import CANDIDATE, SIGNALS


class StrictModel(BaseModel):
    """The base of request bodies: no coercion, and no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def known(self) -> dict[str, Any]:
        """Return the fields that are not None, without copying them (`model_dump` makes a deep copy)."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,128}$")]
"""An id that the caller chooses: unreserved characters only (RFC 3986)."""

_NOT_PRINTABLE = (
    r"\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
    r"\ufff9-\ufffb"
)
"""Controls, invisible format characters and spaces other than U+0020, in the syntax of Rust, ECMAScript and Python."""

UserId = Annotated[str, Field(min_length=1, max_length=128, pattern=f"^[^{_NOT_PRINTABLE}]+$")]
"""The caller's id of a user: printable characters only, so that a log line or a file shows all of it."""

if TYPE_CHECKING:

    class Signals(StrictModel):
        """The signals about a user."""

    class Candidate(StrictModel):
        """A candidate tip."""

        id: Id

else:
    Signals = create_model(
        "Signals",
        __base__=StrictModel,
        __doc__="The signals about a user; leave out a signal whose value is unknown.",
        **{name: (signal.type.annotation | None, None) for name, signal in SIGNALS.items()},
    )
    Candidate = create_model(
        "Candidate",
        __base__=StrictModel,
        __doc__="A candidate tip: its id and its features.",
        id=(Id, ...),
        **{name: (type_.annotation | None, None) for name, type_ in CANDIDATE.items()},
    )

EXAMPLE_SIGNALS: dict[str, JsonValue] = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}

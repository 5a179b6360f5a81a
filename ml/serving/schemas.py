"""What goes over the wire, in and out. The signals come from their definitions."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, create_model

from ml.features.definitions import SIGNALS
from ml.guards import StrictModel
from ml.serving.generate import Tip
from ml.serving.prompts import PROMPTS
from ml.serving.tip import LONGEST

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

_EXAMPLE: dict[str, JsonValue] = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}


class GenerateRequest(StrictModel):
    """Ask for one tip."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"signals": _EXAMPLE, "prompt_version": "v2-mentor"}]},
    )

    signals: Signals = Field(default_factory=Signals)
    prompt_version: Annotated[str, WithJsonSchema({"type": "string", "enum": list(PROMPTS)})] | None = Field(
        default=None, description="One of GET /prompts; otherwise the service's default."
    )
    stream: bool = Field(default=False, description="Answer with server-sent events: meta, delta…, done or error.")

    def known_signals(self) -> Mapping[str, Any]:
        """Return the signals that were given."""
        return self.signals.model_dump(exclude_none=True)


class Usage(BaseModel):
    """Tokens, retries included."""

    input_tokens: int
    output_tokens: int


class Meta(BaseModel):
    """Where a tip comes from."""

    generation_id: str
    prompt_version: str = Field(description="The version that wrote the tip.")
    prompt_digest: str = Field(description="SHA-256 of that version's content.")
    model: str = Field(description="The model that really answered.")
    fallback: bool = Field(description="Whether that was not the first one.")


class GenerateResponse(Meta):
    """A tip, and where it comes from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "generation_id": "095e65266d0e4075aec2ecad5f13abb2",
                    "prompt_version": "v2-mentor",
                    "prompt_digest": PROMPTS["v2-mentor"].digest,
                    "model": "openai/gpt-4o-mini",
                    "fallback": False,
                    "tip": "Dim the lights now, and leave your phone in another room for the night.",
                    "usage": {"input_tokens": 180, "output_tokens": 17},
                    "finish_reason": "stop",
                }
            ]
        }
    )

    tip: str = Field(max_length=LONGEST)
    usage: Usage
    finish_reason: str

    @classmethod
    def of(cls, tip: Tip) -> Self:
        return cls(
            **asdict(tip.origin), tip=tip.text, usage=Usage(**asdict(tip.usage)), finish_reason=tip.finish_reason
        )


class PromptInfo(BaseModel):
    """One registered prompt version."""

    version: str
    description: str
    digest: str


class PromptsResponse(BaseModel):
    """The registered prompt versions, and the one that requests get that name none."""

    default: str
    prompts: list[PromptInfo]


class Health(BaseModel):
    """What the service can do: be reached (`live`), or write tips (`ready`)."""

    status: Literal["live", "ready"]

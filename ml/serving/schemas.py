"""What goes over the wire, in and out."""

from dataclasses import asdict
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from ml.serving.generate import Tip
from ml.serving.prompts import PROMPTS
from ml.serving.tip import LONGEST
from ml.wire import EXAMPLE_SIGNALS, Signals, StrictModel


class GenerateRequest(StrictModel):
    """Ask for one tip."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"signals": EXAMPLE_SIGNALS, "prompt_version": "v2-mentor"}]},
    )

    signals: Signals = Field(default_factory=Signals)
    prompt_version: Annotated[str, WithJsonSchema({"type": "string", "enum": list(PROMPTS)})] | None = Field(
        default=None, description="One of GET /prompts; otherwise the service's default."
    )
    stream: bool = Field(default=False, description="Answer with server-sent events: meta, delta…, done or error.")


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

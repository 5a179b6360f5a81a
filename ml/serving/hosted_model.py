"""One model as LiteLLM calls it: its address, and the parameters that it takes."""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ml.serving.prepared_call import PreparedCall
from ml.serving.prompts import Parameters

REASONING_ALLOWANCE = 4096
"""In tokens, added to the limit of an answer for a model that reasons before it answers and counts both together."""

# The parameters that a provider may refuse, and how its error message names them; tried in this order.
_OPTIONAL_PARAMETERS = {
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "reasoning_effort": re.compile(r"reasoning|thinking|effort", re.IGNORECASE),
    "max_tokens": re.compile(r"\bmax_tokens\b"),
}


@dataclass
class HostedModel:
    """A model with the arguments that address it, and what is known about it.

    `effort`: the least reasoning effort that it takes, if it reasons unless told otherwise. `reasons`: its limit of
    tokens includes reasoning. `refused`: the parameters that its provider has refused. These two are also learned from
    answers, for models that LiteLLM does not know or knows wrongly. `calls`: the prepared calls, by what else than the
    texts of the messages is in them; None where there can be none.
    """

    address: Mapping[str, str] = field(repr=False)  # may have a key
    effort: str | None = None
    reasons: bool = False
    refused: frozenset[str] = frozenset()
    calls: dict[Hashable, PreparedCall | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, model: str, known_models: Mapping[str, Mapping[str, Any]], api_base: str | None, openai_key: str
    ) -> Self:
        """Return the model with this id; `api_base` is the address of its provider, if it is not the usual one.

        `known_models`: LiteLLM's table of models. `openai_key`: the key for an OpenAI-compatible server at `api_base`.
        """
        name = model.partition("/")[2]
        effort = _least_effort(model, known_models.get(model) or known_models.get(name) or {})
        return cls(_address(model, api_base, openai_key, reasons=effort is not None), effort, effort is not None)

    def arguments(self, parameters: Parameters, refused: frozenset[str]) -> dict[str, Any]:
        """Return the sampling parameters to send, without those in `refused`."""
        limit = parameters.max_tokens + (REASONING_ALLOWANCE if self.reasons else 0)
        arguments = {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "reasoning_effort": self.effort,
            "max_completion_tokens" if "max_tokens" in refused else "max_tokens": limit,
        }
        if "claude" in self.address["model"]:  # the newer ones take only one of the two
            refused |= {"top_p"}
        return {name: value for name, value in arguments.items() if value is not None and name not in refused}

    def refused_parameter(self, message: str, refused: frozenset[str]) -> str | None:
        """Return the parameter that a provider's error message is about, unless it was not sent."""
        candidates = (name for name, pattern in _OPTIONAL_PARAMETERS.items() if pattern.search(message))
        return next((name for name in candidates if name not in refused), None)


def _least_effort(model: str, known: Mapping[str, Any]) -> str | None:
    """Return the least reasoning effort of a model that reasons unless told otherwise, by LiteLLM's table; or None."""
    if not known.get("supports_reasoning"):
        return None
    if "claude" in model:  # reasons only if asked to, with few exceptions
        return "low" if known.get("thinking_always_on") else None
    if known.get("supports_none_reasoning_effort"):
        return "none"
    if known.get("supports_minimal_reasoning_effort"):
        return "minimal"
    if "gemini" in model:  # a budget of 0, which the larger models of one generation do not take
        return "minimal" if "2.5-pro" in model else "none"
    return "low"


def _address(model: str, api_base: str | None, openai_key: str, *, reasons: bool) -> dict[str, str]:
    """Return the arguments by which LiteLLM reaches `model`.

    An OpenAI-compatible server is called through LiteLLM's `hosted_vllm` provider, which sends all parameters, whatever
    the name of the model. Not for OpenAI's reasoning models, whose other parameters only the provider `openai` knows.
    """
    if api_base is None:
        return {"model": model}
    provider, _, name = model.partition("/")
    if provider != "openai":
        return {"model": model, "api_base": api_base}
    return {
        "model": model if reasons else f"hosted_vllm/{name}",
        "api_base": api_base,
        "api_key": openai_key or "none",
    }

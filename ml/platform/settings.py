"""Frozen settings from the environment. Entry points read them once and pass them to all other code.

An empty variable counts as unset. A wrong value is a `ConfigurationError`: one sentence, without secrets.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic.functional_validators import BeforeValidator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class ConfigurationError(Exception):
    """A setting has a value that cannot work.

    The message is one sentence for the operator: the setting, the value unless it is secret, and what is allowed.
    """


def split_commas(value: object) -> object:
    """Return the items of a comma-separated text as a tuple, and any other value unchanged."""
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


def has_valid_port(address: str) -> bool:
    """Return whether an address has matching brackets and, if any, a port from 1 to 65535."""
    try:
        return urlsplit(address).port != 0
    except ValueError:
        return False


def _check_address(value: str) -> str:
    if not re.match(r"https?://[^\s/]+", value) or not has_valid_port(value):
        raise ValueError("should be an http:// or https:// address")
    return value


def is_file(path: str | Path) -> bool:
    """Return whether there is such a file; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises OSError for a name that is too long


def _check_file(value: Path) -> Path:
    if not is_file(value):
        raise ValueError("is not a file that can be read")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
ReadableFile = Annotated[Path, AfterValidator(_check_file)]


HIDDEN = "**********"


class ServiceSettings(BaseSettings):
    """The settings that all services have; each field is the environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    generate_timeout_seconds: float = Field(default=30, gt=0, le=600)
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_commas)] = ()
    allow_anonymous: bool = False
    max_connections: int = Field(default=500, ge=1)
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"
    otel_exporter_otlp_endpoint: Address | None = None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Yield the fields for `repr` and `str`, without addresses, which can contain a password."""
        for name, value in super().__repr_args__():
            yield name, HIDDEN if "://" in str(value) else value

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings; raise ConfigurationError if one of them is wrong."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0])
            field = cls.model_fields[name]
            raise ConfigurationError(
                f"{name.upper()}: the value {_shown(first['input'], field)}{_requirement(first, field)}."
            ) from None


_CREDENTIALS = re.compile(r"://.*[@?]|:[^/].*@|^rediss?://")
"""A place for a password in an address: before the host, in a parameter, or anywhere in a wrong address of Redis."""

_NUMBER_KINDS = {float: "a number", int: "a whole number"}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
"""The words for the limits of a number, by the attribute of pydantic's metadata."""


def _shown(value: object, field: FieldInfo) -> str:
    """Return a wrong value and a space, for the sentence "the value …"; nothing if it may be secret."""
    if SecretStr in _types(field.annotation) or _CREDENTIALS.search(str(value)):
        return ""
    return f"{str(value)!r} "


def _requirement(error: ErrorDetails, field: FieldInfo) -> str:
    """Return the end of the sentence "the value …": a validator's own message, or the values that the type allows."""
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    types = _types(field.annotation)
    for kind, words in _NUMBER_KINDS.items():
        if kind in types:
            limits = [
                f"{phrase} {getattr(limit, name):.15g}"
                for name, phrase in _LIMITS.items()
                for limit in field.metadata
                if hasattr(limit, name)
            ]
            return f"should be {words}{', ' if limits else ''}{' and '.join(limits)}"
    if bool in types:
        return "should be true or false"
    return error["msg"].removeprefix("Input ")


def _types(annotation: Any) -> list[Any]:
    """Return a type annotation and the types inside it."""
    return [annotation, *(found for inner in get_args(annotation) for found in _types(inner))]

"""The OpenAPI document: its groups of operations, and the request bodies of routes that parse the body themselves.

FastAPI describes only the models of handler parameters. A route whose handler parses the body describes it with
`openapi_extra=request_body(Model)`; the model and those that it refers to then appear under `components`.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ml.platform.head_requests import without_head


class Tag(StrEnum):
    """The groups of operations."""

    TIPS = "Tips"
    REWARDS = "Rewards"
    ROLLOUTS = "Rollouts"
    SERVING = "Serving"
    OPERATIONS = "Operations"


TAG_DESCRIPTIONS: Mapping[Tag, str] = MappingProxyType(
    {
        Tag.TIPS: "Tips for users, each stored with its prompt version, its exposure and the reactions of users.",
        Tag.REWARDS: "How much the tips of each prompt version help.",
        Tag.ROLLOUTS: "Which version is in which stage, the gates of its next step, and who changed what.",
        Tag.SERVING: "Write or rank tips without storing anything. The prompt version is chosen by the caller.",
        Tag.OPERATIONS: "For load balancers and for metrics.",
    }
)
"""The groups in the order of the document."""

_REF_TEMPLATE = "#/components/schemas/{model}"


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose handler parses a required JSON body as `model`."""
    _, definitions = models_json_schema([(model, "validation")], ref_template=_REF_TEMPLATE)
    schema = {"$ref": _REF_TEMPLATE.format(model=model.__name__), **definitions}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install_openapi(app: FastAPI, *, needs_key: Callable[[str], bool]) -> None:
    """Complete the document that `app.openapi()` returns.

    `tags` describes the groups of its operations. The models of `request_body` appear under `components`, like those of
    handler parameters. The operations at paths for which `needs_key` is true, which the middleware checks, declare that
    they need a bearer key.
    """
    build_document = app.openapi

    def openapi() -> dict[str, Any]:
        document = without_head(build_document)
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        used = {tag for operation in operations for tag in operation.get("tags", ())}
        document["tags"] = [
            {"name": tag.value, "description": description}
            for tag, description in TAG_DESCRIPTIONS.items()
            if tag in used
        ]
        for path, path_operations in document["paths"].items():
            for operation in path_operations.values():
                _move_definitions(operation, document)
                if needs_key(path):
                    operation["security"] = [{"HTTPBearer": []}]
                    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
                    schemes["HTTPBearer"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _move_definitions(operation: dict[str, Any], document: dict[str, Any]) -> None:
    """Move the definitions inside the schema of a request body to the components of the document."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    definitions = schema.pop("$defs", {})
    if definitions:
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)

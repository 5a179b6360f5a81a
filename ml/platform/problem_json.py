"""Errors as problem+json documents (RFC 9457): rendering, parsing, OpenAPI responses and exception handlers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ml.platform.errors import (
    PROBLEM_TYPE_PREFIX,
    FieldError,
    InvalidRequest,
    TipsError,
    UnprocessableRequest,
)

PROBLEM_JSON = "application/problem+json"
MAX_FIELD_ERRORS = 20
MAX_NAME_LENGTH = 60
MAX_DETAIL_LENGTH = 500

_NOT_JSON = "The request body is not valid JSON."
_FRAMEWORK_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is no such path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not have this method; the `Allow` header names its methods.",
}


def error_from_problem(document: Any, retry_after: int | None) -> TipsError | None:
    """Return the error that a problem document of one of these services describes; None for any other document."""
    match document:
        case {"type": str(problem_type), "detail": str(detail)}:
            error_class = _classes_by_slug(TipsError).get(problem_type.removeprefix(PROBLEM_TYPE_PREFIX))
        case _:
            error_class = None
    if error_class is None:
        return None
    fields = document.get("errors")
    errors = [_field_error(field) for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []
    return error_class(detail[:MAX_DETAIL_LENGTH], errors=errors, retry_after=retry_after)


def _field_error(field: Mapping[str, Any]) -> FieldError:
    allowed = field.get("allowed")
    return FieldError(
        str(field.get("pointer", "#"))[:MAX_DETAIL_LENGTH],
        str(field.get("detail", ""))[:MAX_DETAIL_LENGTH],
        tuple(str(value)[:MAX_NAME_LENGTH] for value in allowed) if isinstance(allowed, list) else (),
    )


def _classes_by_slug(root: type[TipsError]) -> dict[str, type[TipsError]]:
    """Return the classes below `root`; a slug that a class shares with its parent is the parent's."""
    classes: dict[str, type[TipsError]] = {}
    for child in root.__subclasses__():
        classes |= _classes_by_slug(child)
    return classes | {root.slug: root}


def problem_response(error: TipsError) -> JSONResponse:
    """Render an error as a problem+json response."""
    return JSONResponse(error.problem(), int(error.status), headers=error.headers, media_type=PROBLEM_JSON)


_PROBLEM_SCHEMA = {
    "title": "Problem",
    "description": "An error (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "A JSON pointer into the request body, or the name of a parameter.",
                    },
                    "detail": {"type": "string"},
                    "allowed": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of a route's error responses with these statuses."""
    content = {PROBLEM_JSON: {"schema": _PROBLEM_SCHEMA}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_problem_handlers(app: FastAPI) -> None:
    """Make `app` answer all errors, its own and the framework's, with problem+json."""

    # Async, since FastAPI runs plain functions in a thread.
    @app.exception_handler(TipsError)
    async def tips_error(_: Request, error: TipsError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        # The first part of a location is the kind of the parameter, such as `query`.
        errors = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
        return problem_response(error_from_validation(errors))

    @app.exception_handler(HTTPException)
    async def framework_error(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        members = {
            "type": "about:blank",
            "title": status.phrase,
            "status": error.status_code,
            "detail": _FRAMEWORK_DETAILS.get(status, f"{status.phrase}."),
        }
        return JSONResponse(members, error.status_code, headers=error.headers, media_type=PROBLEM_JSON)


def error_from_validation(errors: Sequence[Mapping[str, Any]], model: type[BaseModel] | None = None) -> TipsError:
    """Return the error for pydantic's errors in a request; it does not repeat the values that were sent.

    `model`: the model of the body, whose known fields are named for an unknown one.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        return InvalidRequest(_NOT_JSON)
    fields = [_validation_error(error, model) for error in errors[:MAX_FIELD_ERRORS]]
    summary = "; ".join(f"{field.pointer}: {field.detail}" for field in fields[:3])
    return UnprocessableRequest(f"The request is not valid. {summary}.", errors=fields)


def _validation_error(error: Mapping[str, Any], model: type[BaseModel] | None) -> FieldError:
    location, context = error["loc"], error.get("ctx", {})
    detail, allowed = _detail(error, context), tuple(context.get("allowed", ()))
    if error["type"] == "extra_forbidden" and model:
        allowed = _known_fields(model, location[:-1])
        detail += f"; the known ones are {', '.join(allowed)}"
    return FieldError(_pointer(location), detail, allowed)


def _known_fields(model: type[BaseModel], location: Iterable[str | int]) -> tuple[str, ...]:
    """Return the names of the fields of the object at `location` in a body."""
    for name in location:
        if isinstance(name, str):
            model = next(_models_in(model.model_fields[name].annotation))
    return tuple(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation such as `list[Candidate]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


_DETAILS: Mapping[str, str] = {
    "extra_forbidden": "is not known",
    "missing": "is required",
    "model_type": "should be an object",
    "model_attributes_type": "should be an object",
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "too_short": "should have {min_length} or more items",
    "too_long": "should have at most {max_length} items",
    "string_type": "should be a string",
    "string_unicode": "should be a valid Unicode string",
    "string_too_short": "should have {min_length} or more characters",
    "string_too_long": "should have at most {max_length} characters",
    "string_pattern_mismatch": "should match the pattern {pattern}",
    "literal_error": "should be one of {expected}",
    "enum": "should be one of {expected}",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a whole number with fewer digits",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a finite number",
    "greater_than": "should be above {gt:.15g}",
    "greater_than_equal": "should be at least {ge:.15g}",
    "less_than": "should be below {lt:.15g}",
    "less_than_equal": "should be at most {le:.15g}",
    "uuid_type": "should be a UUID",
    "uuid_parsing": "should be a UUID",
    "datetime_type": "should be a date and time",
    "datetime_parsing": "should be a date and time",
    "datetime_from_date_parsing": "should be a date and time",
    "datetime_object_invalid": "should be a date and time",
    "timezone_aware": "should have a time zone",
}
"""The wording of pydantic's errors, by their type, as the end of a sentence that begins with the field."""


def _detail(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    wording = _DETAILS.get(error["type"])
    return wording.format_map(context) if wording else str(error["msg"])


def _pointer(location: Iterable[str | int]) -> str:
    """Return a JSON pointer as a URI fragment; names sent by the caller are cut to `MAX_NAME_LENGTH`."""
    tokens = (str(part)[:MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1") for part in location)
    return "#" + "".join(f"/{token}" for token in tokens)

"""The forms of the page of rollouts: whose form is accepted, what it asks for, and the change that it makes."""

from typing import Annotated, Literal
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from ml.experiments.rollout_state import Kind, RolloutEvent
from ml.platform.errors import Forbidden, InvalidRequest, PasswordNeeded, UnsupportedMediaType
from ml.platform.problem_json import error_from_validation
from ml.rollouts.moves import MAX_LENGTHS
from ml.rollouts.operations import Rollouts

_MAX_FIELDS = 20
_FORM = "application/x-www-form-urlencoded"
_BASIC = HTTPBasic(auto_error=False)


def _one_line(value: object) -> object:
    return " ".join(value.split()) if isinstance(value, str) else value


class RolloutForm(BaseModel):
    """The change that a form of the page requests. `expected`: the id of the last event that the page showed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["start", "promote", "pause", "resume", "rollback"]
    expected: int = Field(ge=0, lt=2**31)
    reason: Annotated[str, BeforeValidator(_one_line), Field(min_length=1, max_length=MAX_LENGTHS["reason"])]
    rollout: int = Field(default=0, ge=0, lt=2**31)
    kind: Kind = "prompt"
    version: str = Field(default="", max_length=200)
    segment: Annotated[str, BeforeValidator(_one_line)] = ""
    force: bool = False


def require_form(password: SecretStr | None) -> Dependency:
    """Return a dependency that refuses what is not a form of this page, in addition to `require_admin`."""

    async def check(request: Request) -> None:
        if password is None:
            raise Forbidden("Without ADMIN_PASSWORD this page changes nothing; use `tips rollout`.")
        if not {"sec-fetch-site", "origin"} & {*request.headers.keys()}:
            raise Forbidden("Only a browser may send this form; `tips rollout` does the same on the command line.")

    return Dependency(check)


async def _actor(credentials: Annotated[HTTPBasicCredentials | None, Depends(_BASIC)]) -> str:
    name = credentials.username.strip() if credentials else ""
    if not name or len(name) > MAX_LENGTHS["actor"] or not name.isprintable():
        raise PasswordNeeded("Sign in with your name as the user name: it is recorded with what you change.")
    return name


ActorDep = Annotated[str, Depends(_actor)]
"""The user name of the request, which is recorded in the event."""


async def read_form(request: Request) -> RolloutForm:
    """Return the form in the body. Raises UnsupportedMediaType, InvalidRequest or UnprocessableRequest."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise UnsupportedMediaType(f"A form is sent with `Content-Type: {_FORM}`.")
    try:
        text = (await request.body()).decode()
        fields = dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise InvalidRequest("The request body is not a form in UTF-8.") from None
    try:
        return RolloutForm.model_validate(fields)
    except ValidationError as error:
        raise error_from_validation(error.errors(include_url=False, include_input=False), RolloutForm) from None


async def apply_form(form: RolloutForm, rollouts: Rollouts, actor: str) -> RolloutEvent:
    """Make the change that a form asks for. Raises the errors of `Rollouts`."""
    expected, reason = form.expected, form.reason
    match form.action:
        case "start":
            segment, force = form.segment, form.force
            return await rollouts.start(
                form.kind, form.version, actor=actor, reason=reason, segment=segment, expected=expected, force=force
            )
        case "promote":
            return await rollouts.promote(form.rollout, actor=actor, reason=reason, expected=expected, force=form.force)
        case "pause":
            return await rollouts.pause(form.rollout, actor=actor, reason=reason, expected=expected)
        case "resume":
            return await rollouts.resume(form.rollout, actor=actor, reason=reason, expected=expected)
        case "rollback":
            return await rollouts.rollback(form.rollout, actor=actor, reason=reason, expected=expected)

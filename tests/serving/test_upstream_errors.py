"""The mapping from LiteLLM's exceptions to the errors of the services."""

import os
from typing import Any

import pytest

from ml.platform.errors import DeadlineExceeded, TipsError, UpstreamFailed
from ml.serving.embedded import ModelInUseError
from ml.serving.upstream_errors import ERROR_MAP, map_upstream_error, vendor_exceptions


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    return __import__("litellm")


def test_all_exceptions_that_litellm_exports_are_mapped(litellm: Any) -> None:
    exported = {exception.__name__ for exception in vendor_exceptions(litellm)}
    assert len(exported) > 30
    assert exported - ERROR_MAP.keys() == set()


def test_all_mapped_exceptions_exist(litellm: Any) -> None:
    exported = {exception.__name__ for exception in vendor_exceptions(litellm)}
    assert ERROR_MAP.keys() - exported == {"HTTPError", ModelInUseError.__name__}


def test_each_mapped_error_has_a_status_and_does_not_contain_the_vendor_s_message(litellm: Any) -> None:
    for exception in vendor_exceptions(litellm):
        raised = exception.__new__(exception)
        Exception.__init__(raised, "secret")
        error = map_upstream_error(raised)
        assert isinstance(error, TipsError)
        assert error.status in {422, 502, 503, 504}
        assert "secret" not in str(error.problem())


def test_a_timeout_is_a_deadline_exceeded(litellm: Any) -> None:
    assert isinstance(map_upstream_error(litellm.Timeout("secret", model="m", llm_provider="p")), DeadlineExceeded)


def test_an_unknown_exception_is_an_upstream_failure() -> None:
    class NewError(Exception): ...

    assert isinstance(map_upstream_error(NewError("secret")), UpstreamFailed)

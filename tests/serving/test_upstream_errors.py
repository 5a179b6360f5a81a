import os
from typing import Any

import pytest

from ml.platform.errors import DeadlineExceeded, TipsError, UpstreamFailed
from ml.serving.upstream_errors import ERROR_MAP, map_upstream_error, vendor_exceptions


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    return __import__("litellm")


def test_every_exception_that_litellm_exports_is_mapped(litellm: Any) -> None:
    exported = {kind.__name__ for kind in vendor_exceptions(litellm)}
    assert len(exported) > 30
    assert exported - ERROR_MAP.keys() == set()


def test_every_mapping_is_for_an_exception_that_exists(litellm: Any) -> None:
    exported = {kind.__name__ for kind in vendor_exceptions(litellm)}
    assert ERROR_MAP.keys() - exported == {"HTTPError"}


def test_every_one_of_them_becomes_an_answer_with_a_status_and_none_of_its_words(litellm: Any) -> None:
    for kind in vendor_exceptions(litellm):
        raised = kind.__new__(kind)
        Exception.__init__(raised, "secret")
        ours = map_upstream_error(raised)
        assert isinstance(ours, TipsError)
        assert ours.status in {422, 502, 503, 504}
        assert "secret" not in str(ours.problem())


def test_a_time_out_is_ours(litellm: Any) -> None:
    assert isinstance(map_upstream_error(litellm.Timeout("secret", model="m", llm_provider="p")), DeadlineExceeded)


def test_what_nobody_has_heard_of_is_a_failure_of_the_upstream() -> None:
    class NewError(Exception): ...

    assert isinstance(map_upstream_error(NewError("secret")), UpstreamFailed)

"""Request bodies that a handler parses itself, in the OpenAPI document."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from ml.platform.openapi import install_openapi, request_body


class Wheel(BaseModel):
    """A wheel."""

    size: int


class Bicycle(BaseModel):
    """A bicycle with two wheels."""

    wheels: tuple[Wheel, Wheel]


router = APIRouter()


@router.post("/parsed-by-handler", openapi_extra=request_body(Bicycle))
async def parsed_by_handler(request: Request) -> None:
    Bicycle.model_validate_json(await request.body())


@router.post("/parsed-by-fastapi")
async def parsed_by_fastapi(body: Bicycle) -> None: ...


def document() -> dict[str, Any]:
    app = FastAPI()
    app.include_router(router)
    install_openapi(app, needs_key=lambda path: path == "/parsed-by-handler")
    return app.openapi()


def test_both_ways_to_parse_a_body_are_described_in_the_same_way() -> None:
    paths = document()["paths"]
    by_handler, by_fastapi = (
        paths[path]["post"]["requestBody"] for path in ("/parsed-by-handler", "/parsed-by-fastapi")
    )
    assert by_handler == by_fastapi


def test_only_operations_that_need_a_key_declare_it() -> None:
    by_handler, by_fastapi = (
        document()["paths"][path]["post"] for path in ("/parsed-by-handler", "/parsed-by-fastapi")
    )
    assert by_handler["security"] == [{"HTTPBearer": []}]
    assert "security" not in by_fastapi
    assert document()["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}


def test_the_models_of_a_body_are_components() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Bicycle"]["properties"]["wheels"]["prefixItems"][0] == {"$ref": "#/components/schemas/Wheel"}
    assert schemas["Wheel"]["required"] == ["size"]


def test_two_applications_with_the_same_router_have_the_same_document() -> None:
    assert document() == document()


def test_the_document_of_an_application_can_be_built_again() -> None:
    app = FastAPI()
    app.include_router(router)
    install_openapi(app, needs_key=lambda path: path == "/parsed-by-handler")
    assert app.openapi() == app.openapi()

"""The routes of a station: what can be asked over HTTP, and in which words it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .. import __version__
from .guard import App, Guard, Refusal
from .routes import router
from .station import Station

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/station.css": ("station.css", "text/css; charset=utf-8"),
    "/station.js": ("station.js", "text/javascript; charset=utf-8"),
    "/texts.json": ("texts.json", "application/json"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def make_app(station: Station, *, token: str | None = None, names: Collection[str] = ()) -> App:
    """The ASGI application of a station, which it drains and closes at the end; `token` and `names` as in `Guard`."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        station.close()

    app = FastAPI(
        title="blemish station", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Judges pictures of parts. Larger scores are more anomalous.",
    )  # fmt: skip
    app.state.station = station
    app.include_router(router)
    _handle_errors(app)
    folder = resources.files("blemish.station").joinpath("page")
    for route, (name, kind) in _PAGE.items():
        page = Response(folder.joinpath(name).read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})
        app.add_api_route(route, _giving(page), include_in_schema=False)
    return Guard(app, token=token, names=names, answered=station.meters.answered)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_request: Request, error: Refusal) -> JSONResponse:
        return JSONResponse({"error": error.reason}, error.status, {"connection": "close", **error.headers})

    @app.exception_handler(HTTPException)
    async def unknown(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"error": "; ".join(found)}, 422)


def _giving(page: Response) -> Callable[[], Response]:
    return lambda: page

"""The page and what it asks for, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from model.page import FILES
from model.serve_answer import Answerer, Views
from model.serve_guard import App, Guard
from model.serve_upload import MAX_BYTES, TOO_LARGE, Refused

MOST = 8  # pictures at a time that are sent, wait or are computed
SECONDS = 60  # for which a picture may take to arrive
PAGE = {
    "/": ("serve.html", "text/html"),
    "/report.css": ("report.css", "text/css"),
    "/serve.css": ("serve.css", "text/css"),
    "/serve.js": ("serve.js", "text/javascript"),
}


class Turns:
    """One picture at a time is computed; a few may wait."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer, self._thread, self._inside = answerer, ThreadPoolExecutor(1, "net"), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises Refused where all are taken."""
        if self._inside >= MOST:
            raise Refused(503, "too many pictures are waiting; try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def answer(self, content: bytes, views: Views) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answerer.answer, content, views)


async def received(request: Request) -> bytes:
    """The request's body, kept in memory alone, and no more of it than is allowed. Raises Refused."""
    claimed = request.headers.get("content-length", "")
    if claimed.isdigit() and int(claimed) > MAX_BYTES:
        raise Refused(413, TOO_LARGE)

    async def all_of_it() -> bytes:
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > MAX_BYTES:
                raise Refused(413, TOO_LARGE)
        return bytes(content)

    try:
        return await asyncio.wait_for(all_of_it(), SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"the picture did not arrive in {SECONDS} seconds; send it again") from None


def make_app(answerer: Answerer, about: dict[str, Any], name: str) -> App:
    """about: what the page says of the net, see serve.js; name: of this machine, as bound to."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    turns = Turns(answerer)
    for path, (file, kind) in PAGE.items():
        _add_file(app, path, (FILES / file).read_bytes(), kind)

    @app.get("/about")
    async def _about() -> JSONResponse:
        return JSONResponse(about)

    @app.post("/answer")
    async def _answer(request: Request, views: Views = "ten") -> JSONResponse:
        with turns.place():
            return JSONResponse(await turns.answer(await received(request), views))

    _say_faults_in_one_line(app)
    return Guard(app, name)


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=kind)

    app.add_api_route(path, file, response_class=Response)


def _say_faults_in_one_line(app: FastAPI) -> None:
    """Every answer that is none is {"error": one line}; a traceback is in this program's own log alone."""

    @app.exception_handler(Refused)
    async def _refused(request: Request, fault: Refused) -> JSONResponse:
        return JSONResponse({"error": fault.line}, fault.status)

    @app.exception_handler(HTTPException)
    async def _nothing_there(request: Request, fault: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(fault.detail)}, fault.status_code, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def _wrong(request: Request, fault: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "views must be ten or centre"}, 400)

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, fault: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def _ours(request: Request, fault: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

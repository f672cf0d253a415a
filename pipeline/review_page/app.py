"""The page's requests: its own files, the list of images, their pictures, and decisions."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Literal

from jinja2 import Environment
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from patchlake.pipeline.images.pictures import picture_size
from patchlake.pipeline.review_page.desk import Decision, Desk, Unacceptable
from patchlake.pipeline.review_page.guard import Guard, Keys
from patchlake.pipeline.score_table.scored import Box

# Of a decision with a hundred regions: 6 KB.
_MOST_BYTES = 64 * 1024
_MOST_REGIONS = 100
_STATIC = {
    "review.js": "text/javascript",
    "review.css": "text/css",
    "review.svg": "image/svg+xml",
}
# Pictures do not change while the server runs, and the next one is asked for ahead.
_KEPT = {"cache-control": "private, max-age=3600"}

_Pixels = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Extent = Annotated[int, Field(ge=1, lt=2**31, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Box(_Strict):
    x: _Pixels
    y: _Pixels
    width: _Extent
    height: _Extent


class _Said(_Strict):
    """The body of a decision."""

    number: Annotated[int, Field(ge=0, strict=True)]
    verdict: Literal["defective", "good", "unsure"]
    regions: Annotated[list[_Box], Field(max_length=_MOST_REGIONS)] | None = None


def make_app(desk: Desk, keys: Keys, done: Callable[[], None]) -> Guard:
    """Return the application, behind its guard.

    Args:
        desk: Keeps images and decisions. Its methods are called from several threads at once.
        keys: Of this server.
        done: Is called when the person says so.
    """
    page = _Page(desk, keys, done)
    routes = [
        Route("/", page.whole),
        Route("/static/{name}", page.static),
        Route("/images", page.images),
        Route("/photo/{number:int}", page.photo),
        Route("/heatmap/{number:int}", page.heatmap),
        Route("/decide", page.decide, methods=["POST"]),
        Route("/done", page.done, methods=["POST"]),
    ]
    handlers = {HTTPException: _told}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), keys)  # type: ignore[arg-type]


async def _told(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code)


@dataclass(frozen=True)
class _Page:
    desk: Desk
    keys: Keys
    finish: Callable[[], None]

    @cached_property
    def _html(self) -> str:
        text = (files(__package__) / "templates" / "page.html").read_text()
        template = Environment(autoescape=True).from_string(text)
        return template.render(
            title=self.desk.title, reviewer=self.desk.reviewer, write=self.keys.write
        )

    async def whole(self, _: Request) -> Response:
        """Return the page itself."""
        return HTMLResponse(self._html)

    async def static(self, request: Request) -> Response:
        """Return one of the page's own files."""
        kind = _STATIC.get(request.path_params["name"])
        if kind is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such file")
        content = (files(__package__) / "static" / request.path_params["name"]).read_bytes()
        return Response(content, media_type=kind)

    async def images(self, _: Request) -> Response:
        """Return what the page shows of each image."""
        cards = []
        for number, image in enumerate(self.desk.images):
            card: dict[str, object] = asdict(image)
            if image.width and image.height:
                # The heatmap has a strip below it; this much of it is the picture.
                high, wide = picture_size(image.width, image.height)
                card |= {"picture_width": wide, "picture_height": high}
            decision = self.desk.decision(number)
            card["decision"] = None if decision is None else asdict(decision)
            cards.append(card)
        return JSONResponse(cards)

    async def photo(self, request: Request) -> Response:
        """Return a photo."""
        found = await run_in_threadpool(self.desk.photo, self._number(request))
        if isinstance(found, str):
            raise HTTPException(HTTPStatus.NOT_FOUND, found)
        return Response(found, media_type="image/jpeg", headers=_KEPT)

    async def heatmap(self, request: Request) -> Response:
        """Return a heatmap."""
        found = await run_in_threadpool(self.desk.heatmap, self._number(request))
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no heatmap of it was drawn, or it is gone")
        return Response(found, media_type="image/jpeg", headers=_KEPT)

    def _number(self, request: Request) -> int:
        number: int = request.path_params["number"]
        if number >= len(self.desk.images):
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no image {number}")
        return number

    async def decide(self, request: Request) -> Response:
        """Keep a decision; the answer says that it is written."""
        try:
            said = _Said.model_validate(json.loads(await _body(request)))
        except (ValidationError, ValueError, RecursionError):
            raise HTTPException(HTTPStatus.BAD_REQUEST, "that is no decision") from None
        if said.number >= len(self.desk.images):
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no image {said.number}")
        regions = None
        if said.regions is not None:
            regions = tuple(Box(box.x, box.y, box.width, box.height) for box in said.regions)
        try:
            decision = Decision(said.verdict, regions)
            await run_in_threadpool(self.desk.decide, said.number, decision)
        except Unacceptable as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        except OSError as error:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"not written: {error}") from None
        return JSONResponse({"saved": said.number})

    async def done(self, _: Request) -> Response:
        """End the session."""
        return JSONResponse({"done": True}, background=BackgroundTask(self.finish))


async def _body(request: Request) -> bytes:
    """Return the body, or refuse one that is too long, before it is read."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _MOST_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "that is too much to decide")
    return bytes(content)

"""What can be asked of a station over HTTP: models, pictures to judge, verdicts, figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .. import __version__
from ..promises import images_needed
from ..report.facts import facts
from ..report.lines import judged_part
from .guard import Refusal, read_body
from .judge import Sent
from .learning import FIRST_RATES
from .limits import Limits
from .logbook import Said
from .models import Models
from .station import Station, sent_of

router = APIRouter()


async def _station(request: Request) -> Station:  # not async, FastAPI would take a thread for it at each request
    station: Station = request.app.state.station
    return station


Here = Annotated[Station, Depends(_station)]
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one picture, of any type `image/...` or `application/octet-stream`; or several "
        "as `multipart/form-data`, each a file of any field name.",
        "content": {
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
            },
        },
    }
}
_LINE = {
    "version": 1, "image": "part-17.png", "score": 2.31, "p_value": 0.04, "model_p_value": None, "threshold": 2.1,
    "false_alarm_rate": 0.05, "guaranteed_rate": 0.05, "certain": None, "anomalous": True, "model": "6f0c1a52d9e37b84",
    "regions": [], "size": [768, 1024],
    "id": 1841, "time": "2026-03-02T07:41:12.250Z", "model_name": "washer", "picture": "9b1d...", "part": "A-17",
}  # fmt: skip
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line for each picture, in their order, as `blemish predict` writes it; kept before it is "
        "answered. A picture that cannot be judged has `version`, `image` and `error` alone.",
        "content": {"application/json": {"example": {"results": [_LINE]}}},
    },
    **{
        status: {"description": text, "content": {"application/json": {"example": {"error": "..."}}}}
        for status, text in {
            400: "The body is no multipart form, or has no picture.",
            401: "The token is missing or wrong.",
            404: "No such model.",
            408: "The body did not come in time.",
            413: "The body, or the number of pictures, is too large.",
            415: "The type of the body is none of an image.",
            422: "None of the pictures can be judged; the lines say why.",
            429: "Too much is waiting; `Retry-After` says when to come again.",
            503: "No turn in time, or the model's file cannot be read.",
        }.items()
    },
}
VerdictNumber = Annotated[int, PathParameter(ge=0, le=2**62, description="The `id` of a line.")]
Side = Annotated[int, Query(ge=16, le=4096, description="The longest side, in pixels.")]


@router.get("/health", summary="Whether the process answers at all")
async def health() -> dict[str, str]:
    return {"status": "alive", "version": __version__}


@router.get("/ready", summary="Whether it takes pictures")
async def ready(here: Here) -> dict[str, str]:
    if not here.is_ready:
        raise Refusal(503, "The station is ending.", retry_after=5)
    return {"status": "ready"}


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
def show_metrics(here: Here) -> Response:
    return Response(here.figures(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models", summary="The models that can be asked")
def list_models(here: Here) -> dict[str, Any]:
    return {"models": [_row(here.models, name) for name in here.models.names()]}


@router.get("/v1/models/{name}", summary="What is to be known of a model before its verdicts are believed")
async def show_model(name: str, here: Here) -> dict[str, Any]:
    loaded = await here.model(name)
    known = loaded.detector.calibration_
    return _row(here.models, name) | {
        "facts": facts(loaded.detector),
        "held_out": None if known is None else known.n_groups,
        "lowest_rate": None if known is None else 1 / (known.n_groups + 1),
        "part_by": loaded.detector.part_by,
        "versions": await asyncio.to_thread(here.revising.history, name),
        "drift": await asyncio.to_thread(here.watching.drift, loaded),
    }


@router.post(
    "/v1/models/{name}/predict", summary="Judge pictures", responses=_ANSWERS, openapi_extra=_IMAGE_BODY,
    response_model=None,
)  # fmt: skip
async def judge_pictures(  # noqa: PLR0917 - FastAPI passes them by name
    name: str,
    request: Request,
    here: Here,
    image: Annotated[str, Query(max_length=200, description="Name of a single picture, for the answer.")] = "",
    part: Annotated[
        str | None,
        Query(
            max_length=200,
            description="The part that all the pictures of this request show; they get one verdict too. Pictures of it "
            "in other requests are not joined with them.",
        ),
    ] = None,
    draw: Annotated[bool, Query(description="Have the overlays at hand, for who will ask for them next.")] = False,
) -> JSONResponse:
    with here.admitted():
        loaded = await here.model(name)
        sent = await _read_pictures(request, here.limits, name=image)
        rows, parts = await here.predict(loaded, sent, part=part, draw=draw)
    found = {"results": rows} | ({"parts": [judged_part(own) for own in parts]} if parts else {})
    return JSONResponse(found, 422 if all("error" in row for row in rows) else 200)


@router.post(
    "/v1/models/{name}/heatmap", summary="The heat map of one picture, as PNG; no verdict is kept",
    responses={200: {"content": {"image/png": {}}}}, openapi_extra=_IMAGE_BODY, response_class=Response,
)  # fmt: skip
async def draw_heatmap(name: str, request: Request, here: Here) -> Response:
    with here.admitted():
        loaded = await here.model(name)
        sent = await _read_pictures(request, here.limits, name="")
        if len(sent) != 1:
            raise Refusal(413, "A heat map is made of one picture at a time.")
        return Response(await here.heatmap(loaded, sent[0]), media_type="image/png")


@router.get("/v1/verdicts", summary="Verdicts that were kept, the latest first")
def list_verdicts(
    *,
    here: Here,
    model: Annotated[str | None, Query(max_length=200)] = None,
    anomalous: bool | None = None,
    said: Annotated[
        Said | Literal["anything", "nothing"] | None, Query(description="What somebody said: anything, or nothing yet.")
    ] = None,
    part: Annotated[str | None, Query(max_length=200)] = None,
    days: Annotated[float | None, Query(gt=0, le=36_500)] = None,
    before: Annotated[int | None, Query(ge=0, le=2**62, description="Only those with a smaller `id`.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    since = None if days is None else time.time() - 86_400 * days
    found = here.logbook.history(
        model=model, anomalous=anomalous, said=said, part=part, since=since, before=before, limit=limit
    )
    return {"verdicts": found}


@router.get("/v1/verdicts/{number}", summary="One verdict")
def show_verdict(number: VerdictNumber, here: Here) -> dict[str, Any]:
    found = here.logbook.verdict(number)
    if found is None:
        raise Refusal(404, "There is no verdict of this number.")
    return found


@router.get("/v1/verdicts/{number}/overlay", summary="What to lay over its picture, as PNG", response_class=Response)
async def draw_overlay(number: VerdictNumber, here: Here) -> Response:
    return Response(await here.overlay(number), media_type="image/png")


@router.get(
    "/v1/verdicts/{number}/reasons", summary="Why its regions were reported: nearest normal places, differences"
)
async def explain_verdict(number: VerdictNumber, here: Here) -> dict[str, Any]:
    with here.admitted():
        return await here.reasons(number)


@router.post("/v1/verdicts/{number}/feedback", summary="What somebody says who has seen the part")
def give_feedback(
    number: VerdictNumber,
    here: Here,
    said: Annotated[Said | None, Query(description="`fine` or `defect`; nothing: taken back.")] = None,
) -> dict[str, Any]:
    if not here.logbook.say(number, said).result():
        raise Refusal(404, "There is no verdict of this number.")
    return {"id": number, "feedback": said}


@router.get("/v1/models/{name}/p-values", summary="Of its verdicts lately, for what another rate would have flagged")
def list_p_values(name: str, here: Here, days: Annotated[float, Query(gt=0, le=366)] = 7) -> dict[str, Any]:
    here.models.require(name)
    return {"days": days, "p_values": here.logbook.p_values(name, since=time.time() - 86_400 * days)}


@router.get("/v1/models/{name}/sample", summary="The pictures of a period, as a sample that sets the threshold")
def show_sample(name: str, here: Here, days: Annotated[float, Query(gt=0, le=366)] = 7) -> dict[str, Any]:
    here.models.require(name)
    found = here.logbook.sample(name, since=time.time() - 86_400 * days)
    return {"days": days, **found, "rates": {f"{rate:g}": images_needed(rate) for rate in FIRST_RATES}}


@router.get("/v1/pictures/{digest}", summary="A kept picture, as a JPEG", response_class=Response)
async def show_picture(digest: str, here: Here, side: Side = 1024) -> Response:
    return Response(await here.picture(digest, side=side), media_type="image/jpeg")


@router.post("/v1/models/{name}/revise", summary="Make a new version, to be looked at first", status_code=202)
async def revise_model(
    name: str,
    here: Here,
    rate: Annotated[float | None, Query(gt=0, lt=1, description="Another false-alarm rate.")] = None,
    days: Annotated[
        float | None, Query(gt=0, le=366, description="From feedback; all pictures of these days set the threshold.")
    ] = None,
) -> dict[str, Any]:
    await here.model(name)
    if (rate is None) == (days is None):
        raise Refusal(422, "rate or days: expected one of them.")
    if rate is not None:
        here.revising.try_rate(name, rate)
    elif days is not None:
        here.revising.try_feedback(name, days)
    return here.work.status()


@router.get("/v1/revision", summary="How far the new version has come, and what it would change")
def show_revision(here: Here) -> dict[str, Any]:
    return here.work.status()


@router.post("/v1/revision/save", summary="Let the new version answer from now on")
def save_revision(here: Here) -> dict[str, Any]:
    return {"model": here.revising.save()}


@router.delete("/v1/revision", summary="Forget the new version")
def discard_revision(here: Here) -> dict[str, Any]:
    here.revising.discard()
    return here.work.status()


@router.post("/v1/models/{name}/undo", summary="Go back to the version before")
def undo_revision(name: str, here: Here) -> dict[str, Any]:
    here.revising.undo(name)
    return {"model": name, "versions": here.revising.history(name)}


@router.get("/v1/learning", summary="The pictures to learn from, what was found, how far it has come")
def show_learning(here: Here) -> dict[str, Any]:
    return here.learning.status()


@router.post("/v1/learning/pictures", summary="Add pictures of good parts", openapi_extra=_IMAGE_BODY)
async def add_normals(
    request: Request, here: Here, image: Annotated[str, Query(max_length=200)] = ""
) -> dict[str, Any]:
    with here.admitted():
        sent = await _read_pictures(request, here.limits, name=image)
        for one in sent:
            await here.viewable(one.content, side=16)  # whatever cannot be shown cannot be learned
        await asyncio.to_thread(here.learning.add, sent)
    return here.learning.status()


@router.delete("/v1/learning/pictures", summary="Remove all of them")
def remove_normals(here: Here) -> dict[str, Any]:
    here.learning.remove(None)
    return here.learning.status()


@router.delete("/v1/learning/pictures/{digest}", summary="Remove one of them")
def remove_normal(digest: str, here: Here) -> dict[str, Any]:
    here.learning.remove(digest)
    return here.learning.status()


@router.get("/v1/learning/pictures/{digest}", summary="One of them, as a JPEG", response_class=Response)
async def show_normal(digest: str, here: Here, side: Side = 256) -> Response:
    content = await asyncio.to_thread(here.learning.content, digest)
    return Response(await here.viewable(content, side=side), media_type="image/jpeg")


@router.post("/v1/learning/inspect", summary="Look at them, as `blemish inspect` does", status_code=202)
def inspect_normals(here: Here) -> dict[str, Any]:
    here.learning.inspect()
    return here.learning.status()


@router.post("/v1/learning/fit", summary="Learn a new model", status_code=202)
def learn_model(name: Annotated[str, Query(max_length=200)], here: Here) -> dict[str, Any]:
    here.learning.learn(name)
    return here.learning.status()


def _row(models: Models, name: str) -> dict[str, Any]:
    loaded = models.loaded().get(name)
    calibration = None if loaded is None else loaded.detector.calibration_
    return {
        "name": name,
        "is_loaded": loaded is not None,
        "digest": None if loaded is None else loaded.digest,
        "threshold": None if calibration is None else calibration.threshold,
        "false_alarm_rate": None if calibration is None else calibration.false_alarm_rate,
        "fault": models.fault(name),
    }


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # the body is in memory already: nothing of a request becomes a file


async def _read_pictures(request: Request, limits: Limits, *, name: str) -> list[Sent]:
    """The pictures of a request. Raises `Refusal`."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not is_form and not kind.startswith("image/") and kind != "application/octet-stream":
        raise Refusal(415, "Content-Type: expected image/..., application/octet-stream or multipart/form-data.")
    body = await read_body(request.receive, request.headers, max_bytes=limits.max_bytes, seconds=limits.seconds)
    named = await _parts(request.headers, body, limits.pictures) if is_form else [(name, body)]
    if not named or not all(content for _, content in named):
        raise Refusal(400, "There is no picture in the request, or an empty one.")
    return [sent_of(own, content) for own, content in named]


async def _parts(headers: Headers, body: bytes, most: int) -> list[tuple[str, bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = _InMemory(headers, stream(), max_files=most, max_fields=16)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:  # the second comes through older Starlettes
        status = 413 if "Too many" in str(error) else 400
        raise Refusal(status, f"No multipart form of at most {most} pictures: {error}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    found = [(one.filename or "", await one.read()) for one in files]
    await form.close()
    return found

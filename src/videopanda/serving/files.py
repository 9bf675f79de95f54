"""The paths below /v1/files: OpenAI's files, and the frames that a question about one would use."""

import asyncio
import base64
import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import Field

from videopanda.serving.errors import NotFoundError
from videopanda.serving.media import MediaLoader
from videopanda.serving.protocol import FrameChoice
from videopanda.serving.uploads import FileStore, StoredFile

_UPLOAD_CHUNK = 1 << 20

router = APIRouter(prefix="/v1/files")


def owner_of_request(request: Request) -> str:
    """The owner whose files a request may see; see `middleware.owner_of`."""
    return str(request.scope.get("owner", ""))


def _store(request: Request) -> FileStore:
    return request.app.state.service.store


def _object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": int(file.expires_at),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "videopanda": {"kind": file.kind, "mime": file.mime},
    }


@router.post("")
async def upload_file(
    request: Request,
    file: Annotated[UploadFile, File(description="A video or an image.")],
    purpose: Annotated[str, Form(max_length=100, description="Stored; has no effect.")] = "user_data",
    anchor: Annotated[Literal["created_at"], Form(alias="expires_after[anchor]")] = "created_at",
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=1)] = None,
) -> dict[str, Any]:
    """Upload a file once, then refer to it by its id."""
    with _store(request).new((file.filename or "")[:255], owner_of_request(request), purpose, seconds) as upload:
        while chunk := await file.read(_UPLOAD_CHUNK):
            await asyncio.to_thread(upload.write, chunk)
        return _object(upload.finish())


@router.get("")
async def list_files(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The files of this key, newest first unless `order` is given; `after` is the last id of the previous page."""
    files = [file for file in _store(request).list(owner_of_request(request)) if purpose in (None, file.purpose)]
    files = files if order == "desc" else files[::-1]
    if after is not None:
        ids = [file.id for file in files]
        if after not in ids:
            raise NotFoundError(f"no file with the id {after!r}", "after")
        files = files[ids.index(after) + 1 :]
    page = [_object(file) for file in files[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(files) > limit}


@router.get("/{file_id}")
async def get_file(request: Request, file_id: str) -> dict[str, Any]:
    """The metadata of a file."""
    return _object(_store(request).get(file_id, owner_of_request(request)))


@router.get("/{file_id}/content", response_model=None)
async def file_content(request: Request, file_id: str) -> FileResponse:
    """The bytes of a file."""
    file = _store(request).get(file_id, owner_of_request(request))
    return FileResponse(file.path, media_type=file.mime, filename=file.name or file.id)


@router.delete("/{file_id}")
async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    """Delete a file."""
    _store(request).remove(file_id, owner_of_request(request))
    return {"id": file_id, "object": "file", "deleted": True}


class Thumbnails(FrameChoice):
    """Which frames to show, and how large."""

    max_side: Annotated[int, Field(ge=8, le=100_000)] = 160
    baseline: None = None


@router.get("/{file_id}/frames")
async def file_frames(request: Request, file_id: str, choice: Annotated[Thumbnails, Query()]) -> dict[str, Any]:
    """The frames that a question with this choice would use, as small JPEG pictures with their times."""
    media: MediaLoader = request.app.state.service.media
    video, tokens = await media.thumbnails(file_id, choice, owner_of_request(request))
    pictures = await asyncio.to_thread(lambda: [_jpeg(frame) for frame in video.frames])
    frames = [
        {"time": float(moment), "index": int(index), "image": picture}
        for moment, index, picture in zip(video.timestamps, video.indices, pictures)
    ]
    return {
        "object": "list",
        "data": frames,
        "duration": video.duration,
        "width": video.width,
        "height": video.height,
        "fps": video.source_fps,
        "visual_tokens": tokens,
    }


def _jpeg(frame: Any) -> str:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

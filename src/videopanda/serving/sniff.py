"""What a file is, told from its first bytes: names and declared types are the sender's word.

Only containers that hold their own pictures are taken. Play lists and scripts of FFmpeg, which name other files, are
text and match nothing here.
"""

import re

from videopanda.serving.errors import UnfitError

HEAD_BYTES = 512

_SIGNATURES: tuple[tuple[str, str, re.Pattern[bytes]], ...] = tuple(
    (kind, mime, re.compile(pattern, re.DOTALL))
    for kind, mime, pattern in (
        ("video", "video/mp4", rb"....ftyp(?!heic|heix|mif1|msf1|avif|avis)"),
        ("video", "video/quicktime", rb"....(?:moov|mdat|wide|free|skip)"),
        ("video", "video/webm", rb"\x1a\x45\xdf\xa3"),  # Matroska as well
        ("video", "video/x-msvideo", rb"RIFF....AVI "),
        ("video", "video/mp2t", rb"\x47.{187}\x47"),
        ("video", "video/mp2t", rb".{4}\x47.{191}\x47"),
        ("video", "video/mpeg", rb"\0\0\x01[\xba\xb3]"),
        ("video", "video/x-flv", rb"FLV\x01"),
        ("video", "video/ogg", rb"OggS"),
        ("video", "video/x-ms-asf", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        ("video", "image/gif", rb"GIF8[79]a"),
        ("image", "image/png", rb"\x89PNG\r\n\x1a\n"),
        ("image", "image/jpeg", rb"\xff\xd8\xff"),
        ("image", "image/webp", rb"RIFF....WEBP"),
        ("image", "image/bmp", rb"BM.{4}\0{4}"),
    )
)


def sniff(head: bytes) -> tuple[str, str]:
    """Kind ("video" or "image") and MIME type of a file that starts with these bytes (`HEAD_BYTES` are enough).

    Raises:
        UnfitError: it is neither.
    """
    if not head:
        raise UnfitError("the file is empty")
    for kind, mime, pattern in _SIGNATURES:
        if pattern.match(head):
            return kind, mime
    raise UnfitError("the file is neither a video nor an image that is known here (MP4, WebM, AVI, GIF, PNG, JPEG, …)")

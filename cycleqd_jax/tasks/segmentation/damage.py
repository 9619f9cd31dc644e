"""Finds damage inside of image files that decoders pass over.

A JPEG that is shortened and has an end marker, or has wrong bytes in the middle, is decoded to grey or shifted areas: libjpeg
warns of them, and Pillow ignores its warnings. Pillow also reads a PNG without the checksums of its pixels.

In a JPEG of one scan, the codes of all pixels must use all bytes. Whether they do is found with Pillow's decoder, which needs
no end marker and raises an error where it lacks data:

- It must not succeed without the last byte. Otherwise bytes are left over.
- It must give the same pixels where the end marker is replaced by other bytes. Otherwise bytes are missing.

Every restart interval is examined in this way, as an image of its own. This finds nearly all that libjpeg warns of. Long runs
of zero bytes are refused too, where no image has them. In a progressive JPEG, all scans must be there, and no bytes may be
missing. Whether bytes are left over is not known there, because the last bits of a scan may change no pixel.

Not found is damage after which the codes still fill the image exactly, and damage of formats without checksums (BMP, TIFF, GIF,
WebP).
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile

from cycleqd_jax.types import InputError

__all__ = ["check_undamaged"]

_PNG = b"\x89PNG\r\n\x1a\n"
_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")  # 0xFF 0x00 is the value 0xFF within data
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_DESCRIPTIONS = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # all but the segments of JFIF and Adobe, which say what the colors are
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_TABLES, _SCAN, _INTERVAL = 0xC4, 0xDA, 0xDD
_FILLER = bytes.fromhex("5ac39917a63c71e8") * 4  # longer than what libjpeg reads ahead
_ZEROS = bytes(64)  # 512 bits contain the codes of a whole block that consists of the first code alone
_LARGEST_SIDE = 65500  # of libjpeg


class _Scan(NamedTuple):
    """A scan of a JPEG.

    Attributes:
        head: the segments since the scan before, its own included.
        data: entropy-coded, with restart markers.
        components: the identifier of each component with the symbol of the shortest AC code, or None if that is not known.
        first: the first coefficient of the scan.
        last: the last coefficient of the scan.
        is_exact: no later scan refines the coefficients.
    """

    head: bytes
    data: bytes
    components: dict[int, int | None]
    first: int
    last: int
    is_exact: bool


class _Jpeg(NamedTuple):
    """What a JPEG consists of.

    Attributes:
        process: the marker of the frame.
        frame: the contents of its segment.
        interval: number of units between restart markers; 0 if there are none.
        scans: in their order.
    """

    process: int
    frame: bytes
    interval: int
    scans: list[_Scan]


def check_undamaged(path: Path) -> None:
    """Checks a file. One that Pillow can't decode at all, or that is no image, may pass.

    Raises:
        InputError: it is damaged, as far as can be found (see above), or it can't be read; the message names it.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be False, got True, with which Pillow does not notice missing "
            f"pixels, while checking {path}; set it to False"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror or error} in {path}; check it") from error
    found = None
    if content.startswith(_START):
        try:
            found = _jpeg_damage(content)
        except Image.DecompressionBombError:  # Pillow does not decode so many pixels
            return
    elif content.startswith(_PNG):
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                image.verify()
        except Exception as error:  # Pillow raises many types for corrupt files
            found = f"an error ({error})"
    if found is not None:
        raise InputError(
            f"expected an undamaged image file, got {found} in {path}; replace it, or save it again if its picture is right"
        )


def _jpeg_damage(content: bytes) -> str | None:
    """What is wrong with a JPEG; None if nothing is found."""
    try:
        return _image_damage(_parsed(content))
    except (IndexError, ValueError, ZeroDivisionError):
        return "malformed segments"


def _image_damage(jpeg: _Jpeg) -> str | None:
    """What is wrong with the image data.

    Raises:
        IndexError, ValueError, ZeroDivisionError: the header is wrong, such as a height of 0.
    """
    if not jpeg.scans or jpeg.process not in (*_SEQUENTIAL, _PROGRESSIVE):
        return None
    identifiers = {*jpeg.frame[6::3]}
    one = jpeg.scans[0]
    if jpeg.process in _SEQUENTIAL and {*one.components} == identifiers:
        if _ZEROS in one.data and any(one.components.values()):
            return "zeros in place of image data"
        return _interval_damage(jpeg, one)
    for identifier in identifiers:
        exact = (scan for scan in jpeg.scans if scan.is_exact and identifier in scan.components)
        if len({place for scan in exact for place in range(scan.first, scan.last + 1)}) < 64:
            return "image data that lack scans"
    plain = b"".join(scan.head + scan.data for scan in jpeg.scans) + _END
    filled = b"".join(scan.head + _RESTART.sub(_FILLER + rb"\g<0>", scan.data) + _FILLER for scan in jpeg.scans) + _END
    return None if _decoded(plain) == _decoded(filled) else "image data that end too early"


def _interval_damage(jpeg: _Jpeg, scan: _Scan) -> str | None:
    """What is wrong with the restart intervals of a single scan."""
    intervals = _RESTART.split(scan.data)[::2]
    order = [marker[0] & 7 for marker in _RESTART.findall(scan.data)]
    heads = [*itertools.islice(_heads(jpeg, scan.head), len(intervals) + 1)]  # a wrong size could ask for billions
    if order != [i % 8 for i in range(len(heads) - 1)]:
        return "missing or misplaced restart markers"
    for head, data in zip(heads, intervals, strict=True):
        found = None if head is None else _data_damage(head, data)
        if found is not None:
            return found
    return None


def _heads(jpeg: _Jpeg, head: bytes) -> Iterator[bytes | None]:
    """The header of an image for each restart interval; None if no image has its number of units."""
    if not jpeg.interval:
        yield head
        return
    height, width = (int.from_bytes(jpeg.frame[i : i + 2]) for i in (1, 3))
    factors = jpeg.frame[7::3] if jpeg.frame[5] > 1 else [0x11]
    unit_height, unit_width = 8 * max(factor & 15 for factor in factors), 8 * max(factor >> 4 for factor in factors)
    columns = -(-width // unit_width)
    left = -(-height // unit_height) * columns
    at = head.index(jpeg.frame) + 1
    while left > 0:
        count = min(left, jpeg.interval)
        rows = count // columns if count % columns == 0 else 1
        size = (rows * unit_height, count // rows * unit_width)
        fits = max(size) <= _LARGEST_SIDE
        yield head[:at] + b"".join(side.to_bytes(2) for side in size) + head[at + 4 :] if fits else None
        left -= count


def _data_damage(head: bytes, data: bytes) -> str | None:
    """What is wrong with entropy-coded data without restart markers."""
    while data.endswith(b"\xff"):  # bytes that fill up before a marker
        data = data[:-1]
    whole = _decoded(head + data + _END)
    if whole is None or _decoded(head + data + _FILLER) != whole:
        return "image data that end too early"
    if _decoded(head + data[: -2 if data.endswith(b"\xff\x00") else -1]) is not None:
        return "image data that go on after the last pixel"
    return None


def _decoded(content: bytes) -> bytes | None:
    """The pixels of a JPEG; None if data are missing or invalid. Pillow's limit of pixels is an error."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.tobytes()
    except (Image.DecompressionBombError, MemoryError):
        raise
    except Exception:  # Pillow raises many types for corrupt files
        return None


def _parsed(content: bytes) -> _Jpeg:
    """The parts of a JPEG, without descriptions; raises ``IndexError`` or ``ValueError`` where a segment is malformed."""
    head, place, process, frame, interval = bytearray(_START), 2, 0, b"", 0
    symbols: dict[int, int] = {}
    scans: list[_Scan] = []
    while (found := _MARKER.search(content, place)) and found[1] != _END[1:]:
        marker, place = found[1][0], found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        start, place = place + 2, place + int.from_bytes(content[place : place + 2])
        segment = content[start:place]
        if marker not in _DESCRIPTIONS:
            head += b"\xff" + found[1] + content[start - 2 : place]
        if marker in _FRAMES:
            process, frame = marker, segment
            if any(not factor & 15 or not factor >> 4 for factor in frame[7::3]):
                raise ValueError("a sampling factor is 0")
        elif marker == _INTERVAL:
            interval = int.from_bytes(segment)
        elif marker == _TABLES:
            symbols |= _first_symbols(segment)
        elif marker == _SCAN:
            end = _data_end(content, place, bool(interval))
            count = segment[0]
            chosen = {segment[1 + 2 * i]: symbols.get(0x10 | segment[2 + 2 * i] & 15) for i in range(count)}
            first, last, refined = segment[1 + 2 * count : 4 + 2 * count]
            scans.append(_Scan(bytes(head), content[place:end], chosen, first, last, refined & 15 == 0))
            head, place = bytearray(), end
    return _Jpeg(process, frame, interval, scans)


def _data_end(content: bytes, place: int, has_restarts: bool) -> int:
    """Where entropy-coded data end."""
    for found in _MARKER.finditer(content, place):
        if not (has_restarts and 0xD0 <= found[1][0] <= 0xD7):
            return found.start()
    return len(content)


def _first_symbols(segment: bytes) -> dict[int, int]:
    """The symbol of the shortest code of each Huffman table of a segment."""
    found = {}
    while len(segment) > 17:
        found[segment[0]] = segment[17]
        segment = segment[17 + sum(segment[1:17]) :]
    return found

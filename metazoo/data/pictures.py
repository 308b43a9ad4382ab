"""One picture, from whatever it was published as to the uint8 array that a store holds."""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
import simplejpeg

from metazoo.errors import UserError, unknown

if TYPE_CHECKING:
    from metazoo.data.dataset import DataSet

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
LARGE = 1 << 26  # pixels; JPEGs above are left to Pillow, which refuses the absurd ones
SMALL = (
    1 << 14
)  # bytes; fingerprints of images up to this size are BLAKE2's, as stores have been ordered by from the first


class Piece(NamedTuple):
    """A picture that is read where it is decoded: `size` bytes of a file from `offset` on, by default to its end.

    With a `shape`, the bytes are no encoded file but the values of a uint8 array.
    """

    path: str
    offset: int = 0
    size: int | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cropped:
    """A picture of which only a box is stored: left, upper, right, lower in pixels, the last two not included.

    What of the box lies outside the picture is not stored.
    """

    content: bytes | Piece
    box: tuple[int, int, int, int]


Picture: TypeAlias = "bytes | Piece | Cropped | np.ndarray | PIL.Image.Image"
"""One image on its way into a store: an encoded file or where it lies, a box of one, a uint8 array [H, W] or [H, W, C],
or a Pillow image. A `Piece` costs least: it is read by the process that decodes it."""


def weight(picture: Picture) -> int:
    """How many bytes of memory a picture takes."""
    if isinstance(picture, Cropped):
        picture = picture.content
    if isinstance(picture, PIL.Image.Image):
        return 4 * picture.width * picture.height
    if isinstance(picture, np.ndarray):
        return picture.nbytes
    return 0 if isinstance(picture, Piece) else len(picture)


RESIZES: Mapping[str, str] = {
    "straight": "to the square, whatever the shape",
    "shorter_side": "the shorter side to SIZE, then the square in the centre",
    "enlarged": "to a square of 8/7 SIZE (96 for 84), then the SIZE pixels in its centre",
}
"""The ways that images of other shapes and sizes become squares of SIZE pixels."""


@dataclass(frozen=True)
class Recipe:
    """What a store makes of every picture, all of it part of the store's identity.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        size: side of the stored square in pixels.
        resample: the Pillow filter ("bicubic", ...).
        inverted: 255 - v is stored.
        resize: a key of RESIZES.
    """

    channels: int
    size: int
    resample: str = "bicubic"
    inverted: bool = False
    resize: str = "straight"

    @classmethod
    def of(cls, sheet: DataSet, size: int, resize: str = "straight") -> Recipe:
        """The recipe of a data set; UserError if there is no such way to resize."""
        if resize not in RESIZES:
            raise unknown("way to resize", resize, RESIZES)
        return cls(sheet.channels, size, sheet.resample, sheet.inverted, resize)

    @property
    def resizing(self) -> str:
        """What a manifest says of it: the filter, after the way to resize where that is not straight."""
        return self.resample if self.resize == "straight" else f"{self.resize} {self.resample}"


class PieceReader:
    """Reads pieces. The file of the last one stays open, as the next one lies most often in the same; close it."""

    def __init__(self) -> None:
        self._path = ""
        self._file: IO[bytes] | None = None

    def __call__(self, piece: Piece) -> bytes | np.ndarray:
        if self._file is None or self._path != piece.path:
            self.close()
            self._path, self._file = piece.path, open(piece.path, "rb", buffering=0)
        self._file.seek(piece.offset)
        content = self._file.read(-1 if piece.size is None else piece.size)
        if piece.size is not None and len(content) != piece.size:
            raise ValueError(f"{piece.path} is cut short")
        return content if piece.shape is None else np.frombuffer(content, np.uint8).reshape(piece.shape)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def decode(picture: Picture, name: str, channels: int, read: PieceReader | None = None) -> np.ndarray:
    """The picture as uint8 [H, W, channels], grey or RGB; UserError naming the image if it does not decode."""
    mode = "L" if channels == 1 else "RGB"
    try:
        box = picture.box if isinstance(picture, Cropped) else None
        content = picture.content if isinstance(picture, Cropped) else picture
        if isinstance(content, Piece):
            content = (read or _read)(content)
        if isinstance(content, bytes):
            values = _plain_jpeg(content) if channels == 3 else None
            if values is None:
                values = _opened(content, mode)
        elif isinstance(content, np.ndarray) and _is_image(content, channels):
            values = np.ascontiguousarray(content)
        else:
            values = _converted(PIL.Image.fromarray(content) if isinstance(content, np.ndarray) else content, mode)
        if not values.size:
            raise ValueError("it has no pixels")
        return values if box is None else _cropped(values, box)
    except Exception as error:  # Pillow's decoders raise whatever they stumble on
        reason = str(error) or type(error).__name__
        raise UserError(f"The image '{name}' does not decode ({reason}); get its source again.") from error


def _read(piece: Piece) -> bytes | np.ndarray:
    with closing(PieceReader()) as read:
        return read(piece)


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """What Pillow makes of a JPEG of the usual kind, in a third of the time for one of 84 pixels; None for all others.

    Both decode with libjpeg-turbo, so the values are the same. Whatever is unusual, damage included, is left to Pillow.
    """
    if not content.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        return simplejpeg.decode_jpeg(content) if colours == "YCbCr" and height * width <= LARGE else None
    except ValueError:
        return None


def _is_image(values: np.ndarray, channels: int) -> bool:
    return values.dtype == np.uint8 and values.shape[2:] == (channels,)


def _opened(content: bytes, mode: str) -> np.ndarray:
    if content.startswith(PNG):
        _check_png(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on unusual files, which it reads all the same
        try:
            with PIL.Image.open(io.BytesIO(content)) as image:
                return _converted(image, mode)
        except PIL.UnidentifiedImageError:
            raise ValueError("it is no image of a kind that Pillow reads" if content else "it is empty") from None


def _converted(image: PIL.Image.Image, mode: str) -> np.ndarray:
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values[:, :, np.newaxis] if mode == "L" else values


def _check_png(content: bytes) -> None:
    """Raise ValueError unless all checksums of a PNG fit; loading one does not look at them."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise ValueError("it is cut short")
        length = int.from_bytes(content[at : at + 4], "big")
        kind, end = content[at + 4 : at + 8], at + 8 + length
        if zlib.crc32(content[at + 4 : end]).to_bytes(4, "big") != content[end : end + 4]:
            raise ValueError("a checksum does not fit")
        at = end + 4


def _cropped(values: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    height, width, _ = values.shape
    left, upper, right, lower = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    if not (left < right and upper < lower):
        raise ValueError(f"the box {box} is not inside its {width} x {height} pixels")
    return np.ascontiguousarray(values[upper:lower, left:right])


def fingerprint(values: np.ndarray) -> bytes:
    """16 bytes that depend on the decoded image alone, uint8 [H, W, C]: what orders a class by content.

    Of larger images it is their SHA-256, for which processors have instructions.
    """
    height, width, _ = values.shape
    size = f"({width}, {height})".encode()
    if values.nbytes <= SMALL:
        return hashlib.blake2b(values.data, digest_size=16, key=size).digest()
    digest = hashlib.sha256(size)
    digest.update(values.data)
    return digest.digest()[:16]


def stored(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The decoded image, uint8 [H, W, C], as the recipe has it: uint8 [C, size, size]."""
    if values.shape[:2] != (recipe.size, recipe.size) or recipe.resize == "enlarged":
        values = _resized(values, recipe)
    planes = values.transpose(2, 0, 1)
    return 255 - planes if recipe.inverted else planes


def _resized(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Sides and offsets are rounded as torchvision's Resize and CenterCrop round them."""
    image = PIL.Image.fromarray(values.squeeze(2) if recipe.channels == 1 else values)
    size, (width, height) = recipe.size, image.size
    if recipe.resize == "straight":
        width = height = size
    elif recipe.resize == "shorter_side":
        shorter = min(width, height)
        width, height = size * width // shorter, size * height // shorter
    else:
        width = height = round(size * 8 / 7)
    if image.size != (width, height):
        image = image.resize((width, height), PIL.Image.Resampling[recipe.resample.upper()])
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image).reshape(height, width, -1)[upper : upper + size, left : left + size]


def rotated(planes: np.ndarray, degrees: int) -> np.ndarray:
    """[..., S, S] turned counter-clockwise by a multiple of 90 degrees."""
    return planes if degrees == 0 else np.ascontiguousarray(np.rot90(planes, degrees // 90, axes=(-2, -1)))

"""One picture, from whatever it was published as to the uint8 array that a store holds."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import PIL.Image

from metazoo.data.dataset import DataSet, Picture
from metazoo.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def decode(picture: Picture, name: str, channels: int) -> PIL.Image.Image:
    """The picture as a Pillow image, grey or RGB by `channels`; UserError naming the image if it does not decode."""
    mode = "L" if channels == 1 else "RGB"
    try:
        if isinstance(picture, bytes):
            if picture.startswith(PNG):  # loading one does not look at its checksums
                with PIL.Image.open(io.BytesIO(picture)) as image:
                    image.verify()
            with PIL.Image.open(io.BytesIO(picture)) as image:
                return image.convert(mode)
        if isinstance(picture, np.ndarray):
            picture = PIL.Image.fromarray(picture)
        return picture if picture.mode == mode else picture.convert(mode)
    except Exception as error:  # Pillow's decoders raise whatever they stumble on
        reason = str(error) or type(error).__name__
        raise UserError(f"The image '{name}' does not decode ({reason}); get its source again.") from error


def fingerprint(image: PIL.Image.Image) -> bytes:
    """16 bytes that depend on the decoded pixels alone: what orders the images of a class by content."""
    return hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()


def stored(image: PIL.Image.Image, sheet: DataSet, size: int) -> np.ndarray:
    """uint8 [C, size, size]: resized straight to the square if it is of another size, inverted if the sheet says so."""
    if image.size != (size, size):
        image = image.resize((size, size), PIL.Image.Resampling[sheet.resample.upper()])
    pixels = np.asarray(image)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(255 - planes if sheet.inverted else planes)


def rotated(planes: np.ndarray, degrees: int) -> np.ndarray:
    """[C, S, S] turned counter-clockwise by a multiple of 90 degrees."""
    return np.ascontiguousarray(np.rot90(planes, degrees // 90, axes=(1, 2)))

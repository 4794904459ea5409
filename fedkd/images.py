"""Pictures of any file format to one array of bytes; Pillow does the decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedkd.samples import said, told

if TYPE_CHECKING:
    from PIL.Image import Image

Side = Annotated[int, Field(ge=1, le=4096, strict=True)]
Size = Side | Annotated[tuple[Side, ...], Field(min_length=2, max_length=2)]  # or height, width
Channels = Literal["auto", "grey", "rgb"]
Bytes = npt.NDArray[np.uint8]

_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decoded(
    images: Iterable[tuple[str, Callable[[], Image]]], resize: Size | None, channels: Channels
) -> Bytes:
    """Named pictures, opened one after the other, as [N, C, H, W].

    Without `resize` all must have one size; with it they are scaled bilinearly to that side, or to
    (height, width), and their proportions go. `auto` is grey where all are. Transparency is left
    out. Raises ValueError naming the picture that cannot be read, is larger or deeper than bytes.
    """
    shape = (resize, resize) if isinstance(resize, int) else resize
    pixels: list[Bytes] = []
    first = ""
    for name, open_ in images:
        with _blaming(name), open_() as image:
            found = _pixels(image, shape, channels)
        if pixels and found.shape[:2] != pixels[0].shape[:2]:
            raise ValueError(
                f"data.source.resize: images should have one size, found {_by(pixels[0])} in "
                f"{told(first)} and {_by(found)} in {told(name)}; set resize, as in "
                "data.source.resize=32"
            )
        first = first or name
        pixels.append(found)
    if len({image.shape[2] for image in pixels}) > 1:
        pixels = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in pixels]
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))


def _pixels(image: Image, shape: tuple[int, ...] | None, channels: Channels) -> Bytes:
    if image.mode in _DEEP:
        raise ValueError(f"more than 8 bits a pixel (mode {image.mode}); save it with 8")
    grey = channels == "grey" or (channels == "auto" and image.mode in _GREY)
    image = image.convert("L" if grey else "RGB")
    if shape is not None and image.size != (shape[1], shape[0]):
        from PIL.Image import Resampling

        image = image.resize((shape[1], shape[0]), Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        raise ValueError(
            f"data.source: {told(name)} should be a readable image, found: {said(error)}; "
            "correct or remove it"
        ) from None


def _by(image: Bytes) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"

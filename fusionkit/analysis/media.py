"""Raw field values as what a page can hold: text, thumbnails, sounds."""

from __future__ import annotations

import base64
import io
import wave
from typing import Any

import numpy as np

from fusionkit.encoders.base import Modality
from fusionkit.errors import DataError

PIXELS = 96  # longer side of a thumbnail
_RATE, _SECONDS = 16_000, 4.0
_LETTERS = 600


def as_text(raw: Any) -> str:
    """A text, cut where it is long."""
    text = str(raw)
    return text if len(text) <= _LETTERS else f"{text[:_LETTERS]} …"


def as_thumbnail(raw: Any) -> str:
    """An image as a data URI: PNG where it is tiny, JPEG elsewhere.

    Raises:
        DataError: It cannot be read.
    """
    from fusionkit.encoders.images import load_image

    image = load_image(raw).convert("RGB")
    image.thumbnail((PIXELS, PIXELS))
    tiny = max(image.size) < PIXELS // 2
    file = io.BytesIO()
    image.save(file, "PNG" if tiny else "JPEG", quality=80)
    return _data(file.getvalue(), "image/png" if tiny else "image/jpeg")


def as_sound(raw: Any) -> str:
    """The first seconds of a clip as a data URI: WAV, 16 bits, 16 kHz, mono.

    Raises:
        DataError: It cannot be read.
    """
    from fusionkit.encoders.audio import load_audio

    samples = np.asarray(load_audio(raw, _RATE, _SECONDS))
    numbers = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(_RATE)
        out.writeframes(numbers.tobytes())
    return _data(file.getvalue(), "audio/wav")


def for_page(raw: Any, modality: Modality) -> dict[str, str] | None:
    """``{"text" | "image" | "sound": ...}``; None for what a page cannot show."""
    if raw is None:
        return {"text": "(missing)"}
    try:
        if modality == "text":
            return {"text": as_text(raw)}
        if modality == "image":
            return {"image": as_thumbnail(raw)}
        if modality == "audio":
            return {"sound": as_sound(raw)}
        if modality == "table":
            return {"text": as_text(", ".join(f"{k}: {v}" for k, v in raw.items()))}
    except DataError as error:
        return {"text": f"(unreadable: {error})"}
    return None


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

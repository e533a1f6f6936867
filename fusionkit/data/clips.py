"""Sound of video clips, as WAV files that audio encoders read."""

from __future__ import annotations

import os
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionkit.data.messy import in_threads
from fusionkit.data.prepare import Track
from fusionkit.registry import require

RATE = 16_000  # samples per second that the speech encoders hear
_SLACK = 1.0  # seconds by which the sound may end ahead of what the header says


def extract_sound(clips: Mapping[Path, Path], track: Track) -> dict[Path, str]:
    """Write the sound of clips, mono, 16 bits; what is there and not older is left as it is.

    Args:
        clips: WAV to write, by clip.
        track: Shows progress.

    Returns:
        ``"missing"``, ``"unreadable"``, ``"cut off"`` or ``"without sound"`` by clip, for those
        that are.

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", "video")
    found = in_threads(lambda clip: _extract(av, clip, clips[clip]), list(clips), track, "clips")
    return {clip: problem for clip, problem in found.items() if problem}


def _extract(av: Any, clip: Path, wav: Path) -> str | None:
    if not clip.is_file():
        return "missing"
    if wav.is_file() and wav.stat().st_mtime >= clip.stat().st_mtime:
        return None
    try:
        with av.open(str(clip)) as container:
            if not container.streams.video or next(container.decode(video=0), None) is None:
                return "unreadable"
        with av.open(str(clip)) as container:
            if not container.streams.audio:
                return "without sound"
            stream = container.streams.audio[0]
            samples = _decode(av, container)
            announced = float((stream.duration or 0) * stream.time_base)
    except (av.FFmpegError, OSError, ValueError):
        return "unreadable"
    if not samples:
        return "without sound"
    if announced - len(samples) / 2 / RATE > _SLACK:
        return "cut off"
    wav.parent.mkdir(parents=True, exist_ok=True)
    unfinished = wav.with_name(f"{wav.name}.unfinished")
    with wave.open(str(unfinished), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples)
    os.replace(unfinished, wav)
    return None


def _decode(av: Any, container: Any) -> bytes:
    """Mono samples of 16 bits."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    parts = []
    for frame in (*container.decode(audio=0), None):  # None: what the resampler holds back
        parts += [out.to_ndarray().tobytes() for out in resampler.resample(frame)]
    return b"".join(parts)

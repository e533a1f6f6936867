from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from fusionkit.analysis.media import PIXELS, for_page


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_small_images_stay_as_they_are_and_large_ones_are_cut_down():
    tiny = np.arange(64, dtype=np.uint8).reshape(8, 8)
    uri = for_page(tiny, "image")["image"]
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(decode(uri))).convert("L")), tiny)
    uri = for_page(Image.new("RGB", (800, 400)), "image")["image"]
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(decode(uri))).size == (PIXELS, PIXELS // 2)


def test_sounds_are_wav_of_a_few_seconds():
    import soundfile

    clip = {"array": np.sin(np.arange(8000 * 6) / 10).astype(np.float32), "sampling_rate": 8000}
    samples, rate = soundfile.read(io.BytesIO(decode(for_page(clip, "audio")["sound"])))
    assert (rate, samples.shape) == (16_000, (64_000,))
    assert 0.9 < np.abs(samples).max() <= 1


def test_texts_tables_and_what_cannot_be_shown(tmp_path):
    assert for_page("<b>bold</b>", "text") == {"text": "<b>bold</b>"}
    assert for_page("x" * 2000, "text")["text"].endswith(" …")
    assert for_page({"age": 3, "sex": None}, "table") == {"text": "age: 3, sex: None"}
    assert for_page(None, "image") == {"text": "(missing)"}
    assert for_page([1.0, 2.0], "vector") is None
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert for_page(str(broken), "image")["text"].startswith("(unreadable: ")

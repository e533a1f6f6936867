"""Banding against all pairs."""

from __future__ import annotations

from itertools import combinations

import imagehash
import numpy as np
from PIL import Image
from things import picture

from fusionkit.doctor.digests import digest_file, digest_text, digest_value
from fusionkit.doctor.images import Picture, group_images
from fusionkit.doctor.near import candidates
from fusionkit.doctor.study import FieldStudy
from fusionkit.doctor.texts import Text, group_texts
from fusionkit.doctor.values import Value


def test_candidates_are_all_pairs_with_an_equal_key():
    keys = np.random.default_rng(0).integers(0, 9, 60)
    found = {tuple(sorted(p)) for a, b in candidates(keys) for p in zip(a, b, strict=True)}
    assert found == {(i, j) for i, j in combinations(range(60), 2) if keys[i] == keys[j]}


def images_of(arrays):
    study = FieldStudy("image", [])
    for i, array in enumerate(arrays):
        study.near[bytes([i])] = Picture(array).near()
    group_images(study)
    return study.groups


def test_images_are_grouped_as_by_comparing_all_pairs():
    rng = np.random.default_rng(0)
    base = [np.asarray(picture(i)) for i in range(20)]
    noisy = [np.clip(a + rng.integers(-8, 9, a.shape), 0, 255).astype(np.uint8) for a in base]
    other = [np.clip(a + 40.0, 0, 255).astype(np.uint8) for a in base]
    every = [*base, *noisy, *other]
    groups = images_of(every)
    hashes = [imagehash.phash(Image.fromarray(a), hash_size=16) for a in every]
    small = [
        np.asarray(Image.fromarray(a).resize((16, 16), Image.Resampling.BILINEAR), dtype=int)
        for a in every
    ]
    near = {
        (i, j)
        for i, j in combinations(range(60), 2)
        if hashes[i] - hashes[j] <= 12 and abs(small[i] - small[j]).max() <= 14
    }
    assert sum((i, 20 + i) in near for i in range(20)) >= 15
    assert all(groups[bytes([i])] == groups[bytes([j])] for i, j in near)
    assert set(groups) == {bytes([i]) for pair in near for i in pair}
    assert len(set(groups.values())) == len(near)


def test_another_colour_is_another_image():
    red, green = (np.zeros((48, 48, 3), np.uint8) for _ in range(2))
    red[10:30, 10:40, 0] = 200
    green[10:30, 10:40, 1] = 200
    assert images_of([red, green]) == {}


def test_blank_images_are_not_compared():
    assert Picture(np.full((20, 20, 3), 90, np.uint8)).near() == b""


def test_texts_are_grouped_by_shared_letters():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(500)]
    texts = [" ".join(rng.choice(words, 80)) for _ in range(30)]
    near = [text.replace(text.split()[3], "another", 1) for text in texts]
    far = [" ".join([*text.split()[:60], *reversed(text.split()[60:])]) + " so" for text in texts]
    study = FieldStudy("text", [])
    for i, text in enumerate([*texts, *near, *far]):
        study.near[bytes([i])] = Text(text).near()
    group_texts(study)
    assert sum(study.groups.get(bytes([i])) == study.groups.get(bytes([30 + i]), -1)
               for i in range(30)) >= 28  # fmt: skip
    assert not any(bytes([60 + i]) in study.groups for i in range(30))
    assert Text("a short text").near() == b""


def test_digests_say_what_is_equal(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"same")
    (tmp_path / "b.bin").write_bytes(b"same")
    assert digest_file(tmp_path / "a.bin") == digest_file(tmp_path / "b.bin")
    assert Value(str(tmp_path / "a.bin")).digest() == digest_file(tmp_path / "b.bin")
    assert digest_text("A  red\nshirt ") == digest_text("a red shirt")
    assert digest_text("a red shirt") != digest_text("a red skirt")
    assert digest_value({"a": 1, "b": None}) == digest_value({"b": None, "a": 1})
    assert digest_value({"a": 1}) != digest_value({"a": "1"})
    array = np.arange(6)
    assert digest_value(array) != digest_value(array.reshape(2, 3))
    assert digest_value(array) == digest_value(array.copy())
    image = Image.new("L", (2, 2), 3)
    assert digest_value(image) == digest_value(image.copy())
    assert digest_value(image) != digest_value(image.convert("RGB"))


def test_large_files_are_told_apart_by_size_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit.doctor.digests._WHOLE", 100)
    monkeypatch.setattr("fusionkit.doctor.digests._END", 10)
    contents = {"a": b"x" * 200, "b": b"x" * 199 + b"y", "c": b"x" * 201, "d": b"x" * 200}
    digests = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        digests[name] = digest_file(tmp_path / name)
    assert digests["a"] == digests["d"]
    assert len({digests["a"], digests["b"], digests["c"]}) == 3

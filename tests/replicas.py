"""Small copies of published data sets as distributed, with what real copies have amiss."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import av
import numpy as np
from PIL import Image

DISHES = ("apple_pie", "baklava", "waffles")
TRAIN, TEST = 20, 6  # photos of each dish
HTML = b"<!doctype html><title>404 Not Found</title>"


def picture(path: Path, colour: int = 0, size: tuple[int, int] = (24, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(colour).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")


def odd_pictures(folder: Path, stem: str) -> None:
    """STEM_2 to STEM_7: truncated, CMYK, palette, animation, EXIF rotation, no picture."""
    whole = (folder / f"{stem}_2.jpg").read_bytes()
    (folder / f"{stem}_2.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    Image.new("CMYK", (24, 16), (0, 200, 200, 0)).save(folder / f"{stem}_3.jpg", "JPEG")
    palette = Image.new("P", (24, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(folder / f"{stem}_4.jpg", "PNG", transparency=0)
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue")]
    frames[0].save(folder / f"{stem}_5.jpg", "GIF", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16), "red").save(folder / f"{stem}_6.jpg", "JPEG", exif=exif)
    (folder / f"{stem}_7.jpg").write_bytes(HTML)


def food101(root: Path, pages: bool = True) -> Path:
    """UPMC Food-101, three of its dishes: 60 photos to train on, 18 to test on."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        for number, dish in enumerate(DISHES):
            for i in range(count):
                name = f"{dish}_{i if split == 'train' else 100 + i}.jpg"
                picture(root / "images" / split / dish / name, 100 * number + i)
    train = root / "images" / "train"
    odd_pictures(train / "apple_pie", "apple_pie")
    (train / "apple_pie" / "apple_pie_1.jpg").unlink()
    (train / "apple_pie" / "Thumbs.db").write_bytes(b"not a photo")
    lines = {
        split: [
            f"{dish}_{i}.jpg,How to make {dish} no. {i},{dish}".encode()
            for dish in DISHES
            for i in places
        ]
        for split, places in {"train": range(TRAIN), "test": range(100, 100 + TEST)}.items()
    }
    change = {
        "baklava_0.jpg": b"baklava_0.jpg,,baklava",
        "baklava_1.jpg": b'baklava_1.jpg,"Baklava, the ""real"" one",baklava',
        "baklava_2.jpg": b'baklava_2.jpg,"Baklava\r\nof my aunt",baklava',
        "baklava_3.jpg": "baklava_3.jpg,Crème “à la” baklava,baklava".encode("cp1252"),
        "baklava_4.jpg": b"baklava_4.jpg,How to make it,baklava\r\nbaklava_4.jpg,How to make it,"
        b"baklava",
        "waffles_1.jpg": b"",
        "waffles_2.jpg": b"waffles_2.jpg,Waffles, eggs, and all,waffles",
        "waffles_4.jpg": b"waffles_4.jpg,Waffles,Waffles\r\nrats.jpg,Rats,ratatouille\r\nrats.jpg",
        "waffles_5.jpg": b'waffles_5.jpg,"Waffles 5,waffles',  # nobody closes this quote
        "waffles_8.jpg": b'waffles_8.jpg,8" waffles,waffles',
    }
    for i, line in enumerate(lines["train"]):
        lines["train"][i] = change.get(line.partition(b",")[0].decode(), line)
    # One photo of train is among those of test as well.
    lines["test"].append(b"waffles_0.jpg,Waffles again,waffles")
    picture(root / "images" / "test" / "waffles" / "waffles_0.jpg")
    (root / "texts").mkdir()
    for split, found in lines.items():
        content = b"\xef\xbb\xbf" + b"\r\n".join(line for line in found if line) + b"\r\n"
        (root / "texts" / f"{split}_titles.csv").write_bytes(content)
    if pages:
        food101_pages(root)
    return root


def food101_pages(root: Path) -> None:
    for image in (root / "images").glob("*/*/*.jpg"):
        page = root / "texts_txt" / image.parent.name / f"{image.stem}.txt"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"{image.stem}\n\n   Take   flour,\tand the rest.\n")
    (root / "texts_txt" / "waffles" / "waffles_3.txt").unlink()
    (root / "texts_txt" / "waffles" / "waffles_2.txt").write_bytes(b"Cr\xe8me \x81")


def mmimdb(root: Path) -> Path:
    """MM-IMDB: 40, 12 and 12 films."""
    sizes = {"train": 40, "dev": 12, "test": 12}
    genres = (["Drama"], ["Drama", "Comedy"], ["Sci-Fi", "Action"], ["Film-Noir"])
    division, number = {}, 0
    for split, count in sizes.items():
        division[split] = [f"{number + i:07d}" for i in range(count)]
        for name in division[split]:
            film = {"plot": [f"Film {number}.", f"The longer plot of film {number}."], "title": "x"}
            film["genres"] = genres[number % 4]
            write_film(root, name, film)
            picture(root / "dataset" / f"{name}.jpeg", number)
            number += 1
    write_film(root, "0000000", {"plot": "One plot, no list.", "genres": ["Drama"]})
    write_film(root, "0000001", {"plot": [], "genres": ["Drama"]})
    write_film(root, "0000002", {"plot": ["The news."], "genres": ["Drama", "News"]})
    write_film(root, "0000003", {"plot": ["A talk."], "genres": ["Talk-Show"]})
    write_film(root, "0000004", {"plot": ["An odd one."], "genres": ["Adult", "Drama"]})
    write_film(root, "0000005", {"plot": ["An odder one."], "genres": ["Adult"]})
    (root / "dataset" / "0000006.json").write_bytes(b'{"plot": ["Caf\xe9"], "genres": ["War"]}')
    (root / "dataset" / "0000007.json").write_bytes(b"\xef\xbb\xbf{")
    (root / "dataset" / "0000008.json").unlink()
    (root / "dataset" / "0000009.jpeg").unlink()
    (root / "dataset" / "0000010.jpeg").write_bytes(HTML)
    Image.new("L", (24, 16), 90).save(root / "dataset" / "0000011.jpeg")
    division["train"].append("0000012")
    (root / "split.json").write_text(json.dumps(division))
    return root


def write_film(root: Path, name: str, film: dict) -> None:
    (root / "dataset").mkdir(parents=True, exist_ok=True)
    (root / "dataset" / f"{name}.json").write_text(json.dumps(film))


LABELS = ("entailment", "neutral", "contradiction")


def snli_ve(root: Path) -> Path:
    """SNLI-VE: 30, 9 and 9 pairs, three for each picture."""
    start = 1000
    for split, count in (("train", 30), ("dev", 9), ("test", 9)):
        lines = []
        for i in range(count):
            image = str(start + i // 3)
            lines.append(pair(image, i % 3))
            if i % 3 == 0:
                picture(root / "flickr30k_images" / f"{image}.jpg", int(image))
        start += 100
        if split == "train":
            lines[1] = pair("1000", 1, gold_label="-")
            lines[2] = pair("1000", 2, sentence2="")
            lines[3] = {k: v for k, v in pair("1001", 0).items() if k != "Flickr30K_ID"}
            lines[4] = {**lines[3], "pairID": "1001.jpg#1r1n", "Flikr30kID": "1001.jpg"}
            lines += [pair("1003", 0), pair("1003", 0, sentence2="Someone else sleeps.")]
        text = b"\r\n".join(json.dumps(line).encode() for line in lines) + b"\r\n\r\n"
        if split == "train":
            text = b"\xef\xbb\xbf" + text + b'{"pairID": "half\r\n'
            text += json.dumps(pair("1004", 9), ensure_ascii=False).encode("cp1252") + b"\r\n"
        (root / f"snli_ve_{split}.jsonl").write_bytes(text)
    (root / "flickr30k_images" / "1005.jpg").unlink()
    (root / "flickr30k_images" / "1006.jpg").write_bytes(b"")
    return root


def pair(image: str, i: int, **change: str) -> dict:
    sentence = "Someone naïve sleeps." if i == 9 else f"Someone sleeps, {i}."
    return {
        "annotator_labels": [LABELS[i % 3]],
        "Flickr30K_ID": image,
        "gold_label": LABELS[i % 3],
        "pairID": f"{image}.jpg#0r{i}n",
        "sentence1": "Two people in a park.",
        "sentence2": sentence,
        **change,
    }


def mustard(root: Path, folds: bool = True, count: int = 25) -> Path:
    """MUStARD: 25 clips, the last 10 of Friends."""
    content = {}
    for i in range(count):
        friends = i >= count - 10
        name = f"{2 if friends else 1}_{i}"
        content[name] = {
            "utterance": f"It is the {i}th of them.",
            "speaker": "CHANDLER" if friends else "SHELDON",
            "context": [f"Which one is it?\nNumber {i}?", "Go on."],
            "context_speakers": ["ROSS", "ROSS"],
            "show": "FRIENDS" if friends else "BBT",
            "sarcasm": i % 2 == 0,
        }
        clip(root / "utterances_final" / f"{name}.mp4", i)
    content["1_0"]["utterance"] = "You don\u00d5t say."
    content["1_1"]["context"] = []
    del content["2_20"]["show"]
    clips = root / "utterances_final"
    (clips / "1_2.mp4").unlink()
    (clips / "1_3.mp4").write_bytes((clips / "1_3.mp4").read_bytes()[:600])
    clip(clips / "1_4.mp4", 4, sound=False)
    (root / "sarcasm_data.json").write_text(json.dumps(content, indent=2))
    if folds:
        places = np.arange(count)
        indices = [(places[places % 5 != k], places[places % 5 == k]) for k in range(5)]
        (root / "split_indices.p").write_bytes(pickle.dumps(indices, protocol=2))
    return root


def clip(
    path: Path, seed: int, sound: bool = True, seconds: float = 1.0, fast_start: bool = False
) -> None:
    """A video of noise, with a tone; with ``fast_start`` the header stands in front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    options = {"movflags": "faststart"} if fast_start else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("mpeg4", rate=8)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("aac", rate=44_100) if sound else None
        for _ in range(int(8 * seconds)):
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            for packet in video.encode(av.VideoFrame.from_ndarray(image)):
                container.mux(packet)
        container.mux(video.encode(None))
        if audio is not None:
            time = np.arange(int(44_100 * seconds)) / 44_100
            wave = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
            frame.sample_rate = 44_100
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))

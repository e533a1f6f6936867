"""Memory and speed of the data set `table` over a large file, by format.

    python benchmarks/table_memory.py --rows 1000000

Each format is read in a process of its own, twice: the first time a file that cannot be mapped
into memory is converted. An epoch is then drawn by a loader with two workers. Memory is what the
process and its workers hold for themselves (proportional, without pages of mapped files, which
the system takes back when it needs them), beyond what a table of 40 rows takes. Seconds are those
of the processor, samples are made in one process. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMATS = ("csv", "jsonl", "parquet", "arrow")
FIELDS = {"image": "photo", "text": "title", "table": {"columns": ["price", "colour"]}}
WORDS = ["red", "blue", "warm", "light", "cotton", "wool", "shirt", "dress", "shoe", "long"]


def make_tables(folder: Path, rows: int, formats: list[str]) -> None:
    """Write the same rows in each format, in blocks."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    writers = {}
    rng = random.Random(0)
    for start in range(0, rows, 50_000):
        block = [
            {
                "photo": f"images/{i % 1000:03d}/{i:08d}.jpg",
                "title": " ".join(rng.choices(WORDS, k=40)),
                "price": rng.random(),
                "colour": rng.choice(WORDS),
                "kind": f"kind {rng.randrange(100)}",
            }
            for i in range(start, min(start + 50_000, rows))
        ]
        table = pa.Table.from_pylist(block)
        for name in formats:
            path = folder / f"t.{name}"
            if name == "jsonl":
                with path.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in block)
                continue
            if name not in writers:
                make = {
                    "csv": pa.csv.CSVWriter,
                    "parquet": pa.parquet.ParquetWriter,
                    "arrow": pa.ipc.new_file,
                }[name]
                writers[name] = make(path, table.schema)
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()


def measure(file: str) -> None:
    """In a child process: say what is begun, line by line, and at the end what came of it."""
    import torch

    from fusionkit.config.schema import LoaderConfig
    from fusionkit.data.loading import RoleInput, make_loader
    from fusionkit.data.table import Table

    class Length:
        def __call__(self, raw):
            return len(raw)

        def collate(self, rows):
            return {"length": torch.tensor(rows)}

    def load(file):
        table = Table(file, FIELDS, label="kind")
        samples = table.split("train")
        return samples, len(table.classes)

    roles = [RoleInput("main", "image", Length()), RoleInput("complement", "text", Length())]
    config = LoaderConfig(batch_size=256, workers=2)
    small = str(Path(file).with_name("small.csv"))  # what any table takes, imports above all
    for _ in make_loader(load(small)[0], roles, "single_label", 2, config, train=True, seed=0):
        pass
    say("base")
    time.sleep(0.2)
    say("read")
    started = time.process_time()
    samples, classes = load(file)
    read = time.process_time() - started
    say("access")
    order = random.Random(1).sample(range(len(samples)), min(20_000, len(samples)))
    started = time.process_time()
    for i in order:
        samples[i]
    speed = len(order) / (time.process_time() - started)
    loader = make_loader(samples, roles, "single_label", classes, config, train=True, seed=0)
    tenth = len(loader) // 10
    say("early")
    for number, _ in enumerate(loader):
        if number == tenth:
            say("middle")
        if number == 9 * tenth:
            say("late")
    say(json.dumps({"seconds": read, "speed": speed, "rows": len(samples)}))


def say(what: str) -> None:
    print(what, flush=True)


def private_mb(pid: int) -> float:
    """Megabytes that a process and its children hold: their share of anonymous pages."""
    kilobytes = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                kilobytes += int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                kilobytes += private_mb(int(child)) * 1e3
    return kilobytes / 1e3


def watch(file: Path, cache: Path) -> dict[str, float]:
    """Run :func:`measure` and note the highest memory of each stage."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--measure", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FUSIONKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
    )
    os.set_blocking(child.stdout.fileno(), False)
    stage, peak = "start", {}
    while True:
        line = child.stdout.readline().strip()
        if line.startswith("{"):
            break
        if not line and child.poll() is not None:
            raise SystemExit(f"{file.name} could not be measured.")
        stage = line or stage
        peak[stage] = max(peak.get(stage, 0.0), private_mb(child.pid))
        time.sleep(0.02)
    child.wait()
    return json.loads(line) | {key: value - peak["base"] for key, value in peak.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_tables(folder, options.rows, options.formats)
        lines = "x,y,1,red,even\n" * 20 + "x,y,1,red,odd\n" * 20
        (folder / "small.csv").write_text("photo,title,price,colour,kind\n" + lines)
        print(f"{options.rows:,} rows")
        print(
            "format     file, MB  opening, MB (s)  again, MB (s)  epoch, MB: start, rest  samples/s"
        )
        for name in options.formats:
            file = folder / f"t.{name}"
            first, again = (watch(file, folder / "cache") for _ in range(2))
            rest = max(again["middle"], again["late"])
            print(
                f"{name:<10} {file.stat().st_size / 1e6:8.0f} "
                f"{max(first['read'], 0):10.0f} ({first['seconds']:4.1f}) "
                f"{max(again['read'], 0):8.0f} ({again['seconds']:4.1f}) "
                f"{again['early']:16.0f} {rest:13.0f} {again['speed']:12,.0f}",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()

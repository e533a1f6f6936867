"""What runs in a process of its own: measuring one system, training one run of a comparison.

Memory is then that system's alone, and one that crashes or runs out of memory ends nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from fusionkit.compare.measure import Bench, Cost
from fusionkit.config.schema import Experiment
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import DataError, FusionkitError, WeightsError
from fusionkit.registry import load
from fusionkit.training.folders import CONFIG
from fusionkit.training.run import fit_in

LOG = "log.txt"

_ERROR = "fusionkit: error: "
_LACK: dict[type[FusionkitError], str] = {DataError: "no data", WeightsError: "no weights"}
_SMALLER = "give a smaller --loader.batch_size, or --trainer.gradient_checkpointing true"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a system could not be measured.

    Attributes:
        kind: ``no data``, ``no weights`` or ``failed``; short enough for a table.
        message: The whole reason.
    """

    kind: str
    message: str

    @classmethod
    def of(cls, error: FusionkitError) -> Failure:
        """What was raised on purpose."""
        kinds = (kind for raised, kind in _LACK.items() if isinstance(error, raised))
        return cls(next(kinds, "failed"), str(error))


def preload(experiments: Iterable[Experiment]) -> None:
    """Have the processes that measure start with everything imported that these need."""
    modules = {__name__}
    for experiment in experiments:
        parts = [experiment.main, experiment.main_transfer, experiment.fusion, experiment.data]
        for complement in experiment.complements:
            parts += [complement.encoder, complement.transfer]
        modules |= {load(part.kind, part.name).__module__ for part in parts}
    multiprocessing.set_forkserver_preload(sorted(modules))
    # A library that asks for a GPU on import would otherwise start CUDA, which does not fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def measure(experiment: Experiment, steps: int | None) -> tuple[Cost | None, Failure | None]:
    """Measure a system in a process of its own.

    Args:
        experiment: The system.
        steps: Timed steps, see :meth:`Bench.time`.

    Returns:
        What was measured, and why it is nothing, or lacks FLOPs.
    """
    # Forked from a clean process that has imported everything, where there is such a thing.
    clean = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if clean else "spawn")
    reader, writer = context.Pipe(duplex=False)
    cost, failure = None, None
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / LOG
        process = context.Process(target=_measure, args=(experiment, steps, writer, log))
        process.start()
        writer.close()
        try:
            while True:
                found = reader.recv()
                cost, failure = (cost, found) if isinstance(found, Failure) else (found, failure)
        except EOFError:  # it has ended
            process.join()
        finally:
            process.kill()
            reader.close()
        if process.exitcode and failure is None:
            failure = Failure("failed", _why(process.exitcode, log))
    return cost, failure


def _measure(experiment: Experiment, steps: int | None, writer: Connection, log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C, the first process ends this one
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    try:
        bench = Bench(experiment)
        cost = bench.time(steps)
        writer.send(cost)
        forward, step = bench.count_flops()
        writer.send(replace(cost, forward_flops=forward, step_flops=step))
    except FusionkitError as error:
        writer.send(Failure.of(error))
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        writer.send(Failure("failed", f"{first}; {_SMALLER}."))


class Training:
    """One run of a comparison, in a process that ends with this one.

    The process has a command line of its own, so that Lightning can start it once per device.

    Args:
        folder: Holds the run's config; everything it leaves goes there, what it prints to
            :data:`LOG`.
        threads: Of each of its processes; None for as many as it likes.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        self._log = folder / LOG
        shares = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **shares},
            )

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self._process.poll() is not None

    @property
    def memory(self) -> int:
        """Bytes that it and what it has started hold now."""
        try:
            process = psutil.Process(self._process.pid)
            family = [process, *process.children(recursive=True)]
            return sum(member.memory_info().rss for member in family)
        except psutil.NoSuchProcess:  # it has just ended
            return 0

    @property
    def error(self) -> str | None:
        """What went wrong in a run that has ended."""
        code = self._process.returncode
        return _why(code, self._log) if code else None

    def stop(self) -> None:
        """End it now; what its last epoch left can be continued."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _why(code: int, log: Path) -> str:
    """The reason for an exit code, from what the process printed."""
    if code < 0:
        name = signal.Signals(-code).name
        killed = f"the process was ended by {name}"
        memory = f", most likely for lack of memory: {_SMALLER}"
        return f"{killed}{memory if -code == signal.SIGKILL else ''}."
    printed = log.read_text(encoding="utf-8", errors="replace").strip()
    if _ERROR in printed:
        return printed.rpartition(_ERROR)[2]
    return printed.rpartition("\n")[2] or f"the process ended with exit code {code}."


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the process at the other end of the pipe has closed it or is gone
    os._exit(1)


def main(argv: list[str]) -> int:
    """Train in the folder that is given."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = Path(argv[0])
    config = folder / CONFIG
    try:
        resolved = yaml.safe_load(config.read_text(encoding="utf-8"))
        fit_in(experiment_from_mapping(resolved, str(config)), folder)
    except FusionkitError as error:
        print(f"{_ERROR}{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One raw value under examination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusionkit.doctor.digests import digest_file, digest_value
from fusionkit.doctor.study import Reader
from fusionkit.encoders.files import file_name, is_file


class Value:
    """A value of a modality that is not measured; those that are have classes of their own.

    Args:
        raw: What the sample holds: a path, an array, ...
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def read(self, reader: Reader) -> None:
        """Read the value as training does; raises what the encoder's preprocessor raises."""
        if reader.preprocessor is not None:
            reader.preprocessor(self.raw)

    def shown(self) -> str:
        """The path or URL, if it is one."""
        return file_name(self.raw) if is_file(self.raw) else ""

    def digest(self) -> bytes:
        """Hash of the content.

        Raises:
            OSError: It is in a file that cannot be read.
            DataError: It is at a URL that cannot be read.
        """
        return digest_file(self.raw) if is_file(self.raw) else digest_value(self.raw)

    def facts(self, readers: Sequence[Reader]) -> Any:
        """Measures; None if there are none."""
        return None

    def near(self) -> bytes:
        """What nearly equal values are found by; empty if they are not looked for."""
        return b""

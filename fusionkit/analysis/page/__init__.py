"""The page of a run: one file, which needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fusionkit.data.folders import write_whole


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write :func:`page` to a file, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(report))


def page(report: Mapping[str, Any]) -> str:
    """The HTML of what :func:`fusionkit.analysis.report.report` found."""
    here = files(__name__)
    # In a script element only "</" and "<!--" mean anything; no value may hold either.
    data = json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(f"{report['name']} - fusionkit"),
        style=here.joinpath("page.css").read_text("utf-8"),
        script=here.joinpath("page.js").read_text("utf-8"),
        data=data,
    )

from __future__ import annotations

from pathlib import Path

import pytest
from things import Things


@pytest.fixture
def things(tmp_path: Path) -> Things:
    return Things(tmp_path)

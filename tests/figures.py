"""What tests want told at the end of the run: how much they compared, how long it took."""

from __future__ import annotations

import pytest

FIGURES = pytest.StashKey[list[str]]()

"""Lets the suites here import their shared helper by name: this folder is no package and is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Lets the suites here import their shared helper by name: this folder is no package and is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from paired import ENVIRONMENT

# What the suites open in this process goes by no profile of this machine either.
os.environ["MRI_EDGE_PROFILE_DIR"] = ENVIRONMENT["MRI_EDGE_PROFILE_DIR"]

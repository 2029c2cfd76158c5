"""Lets the tests here import the modules beside them, as the script oracles.py does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

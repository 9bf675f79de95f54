"""Lets these tests import what all tests share (`tiny.py`, one folder up)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

"""Lets the tests of this folder import `wire_types`, which is no test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

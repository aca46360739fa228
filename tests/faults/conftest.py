"""The makers of tiny files of other tests."""

import sys
from pathlib import Path

for name in ("data", "evaluation"):
    sys.path.append(str(Path(__file__).parents[1] / name))  # tiny_raw.py, boxes.py
sys.path.append(str(Path(__file__).parent))  # fuzz.py

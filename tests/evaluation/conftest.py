"""by_hand.py: derivations that several files of tests share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

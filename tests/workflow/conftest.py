import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # test_workflow.py and its checkout

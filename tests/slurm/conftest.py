import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "workflow"))  # test_workflow.py and its checkout
sys.path.append(str(Path(__file__).parent))  # cluster.py

"""The numbers of docs/parity.md are those that were recorded."""

import subprocess
import sys


def test_the_tables_are_what_was_recorded(pytestconfig):
    root = pytestconfig.rootpath
    command = [sys.executable, "tools/parity.py", "--check"]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": "src"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()

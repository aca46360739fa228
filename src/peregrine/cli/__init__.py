"""`python -m peregrine STEP`: every rule of the workflow, also by hand.

Each command imports what it needs when it runs, so that planning and reporting never load torch.
"""

import os
import sys

from typer.exceptions import TyperException

from peregrine.cli import runs, studies, travel, look  # isort: skip  # in the order of the help
from peregrine.cli.options import app
from peregrine.errors import REMEDIES, UserError, out_of_memory, refusal

__all__ = ["app", "look", "main", "runs", "studies", "travel"]


def main() -> None:
    """Entry point: a user's error is one line on stderr and exit code 2."""
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except UserError as error:
        problem = str(error)
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "python -m peregrine")
        problem = f"{error.format_message()} (see {command} -h)"
    except BrokenPipeError:
        os._exit(1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        problem = (
            "there is not enough memory for this run; take a smaller batch_size, net or view"
            f" (accumulate cuts a batch, chunk FALCON's dictionary): {error}"
        )
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        problem = f"{error.filename or 'a file'}: {refusal(error)}"
    print(f"peregrine: error: {' '.join(problem.split())}", file=sys.stderr)
    sys.exit(2)

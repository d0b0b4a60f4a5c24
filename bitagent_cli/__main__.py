"""`python -m bitagent_cli` is the same program as `bitagent` (torchrun needs this form)."""

import sys
from pathlib import Path

# -m puts the working directory first, where a folder of the user's may be called `stages`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from bitagent_cli.app import app  # noqa: E402

if __name__ == "__main__":
    app(prog_name="bitagent")

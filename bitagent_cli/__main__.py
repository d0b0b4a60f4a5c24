"""`python -m bitagent_cli` is the same program as `bitagent` (torchrun needs this form)."""

from bitagent_cli.app import app

if __name__ == "__main__":
    app(prog_name="bitagent")

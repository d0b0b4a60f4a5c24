"""The door: the command line of BiTAgent. Nothing here trains."""

__version__ = "0.1.0"

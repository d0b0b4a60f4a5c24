"""The small shared core: worlds, data, artifacts, backbones, the joint model and its losses."""

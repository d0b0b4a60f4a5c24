"""The small shared core: the joint model, its losses, and how behaviour is learned with it."""

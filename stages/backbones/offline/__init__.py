"""The offline backbone: a video tower trained here against captions written from the physics; frozen MiniLM for text."""

"""The offline backbone: a video tower trained here on captions written from the physics, and a frozen MiniLM."""

"""Datasets of episodes: written, opened, sampled, rendered again, imported."""

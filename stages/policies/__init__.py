"""Trained policies: what they are asked for, how they act, and episodes in the real environment."""

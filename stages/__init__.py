"""The seven stages, one file each; they share stages.core and meet only through artifacts on disk."""

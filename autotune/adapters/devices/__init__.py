"""Accelerators: which there are, who holds them, how they are."""

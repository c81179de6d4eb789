"""Engines as bundles: packed where there is a network, put together where there is none."""

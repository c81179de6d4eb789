"""Engines: their environments, processes and hosts."""

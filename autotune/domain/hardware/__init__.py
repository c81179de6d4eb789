"""The machine: accelerators and their constants, nodes and their state, placement."""

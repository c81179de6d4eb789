"""Power meters, one module each."""

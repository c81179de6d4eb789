"""Parallelism and configuration auto-tuner for LLM inference engines."""

__version__ = "0.1.0"

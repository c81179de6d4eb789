"""Parallelism and configuration auto-tuner for LLM inference engines."""

from importlib.metadata import version

__version__ = version("autotune-inference")

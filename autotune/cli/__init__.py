"""The command line: arguments, progress, tables."""

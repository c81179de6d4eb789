"""A study: its file, its trials and budget, what happens in it, and the ports it works through."""

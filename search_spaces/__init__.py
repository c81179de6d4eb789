"""Search spaces and example studies, as data."""

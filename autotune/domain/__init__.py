"""Pure facts and functions: what is searched, what was measured, what it is worth."""

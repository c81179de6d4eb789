"""Puts this directory on the path of imports, for the stand-ins that tests share."""

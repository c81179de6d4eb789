"""Puts this directory on the path of imports, for the stand-ins that tests share."""

from hypothesis import settings

# A busy machine is no failure: nothing here is asserted by the time it takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

"""Tests of the package `gpo`."""

from hypothesis import settings

# Properties are about values, not speed: a busy machine must not fail them.
settings.register_profile("gpo", deadline=None)
settings.load_profile("gpo")

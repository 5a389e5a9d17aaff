"""Tests of the package `rollout`."""

from hypothesis import settings

# Properties are about values, not speed: a busy machine must not fail them.
settings.register_profile("rollout", deadline=None)
settings.load_profile("rollout")

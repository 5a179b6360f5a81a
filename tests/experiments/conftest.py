"""Hypothesis without a deadline per example, which tests on a busy machine would exceed."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

"""How many examples property tests look at: `--hypothesis-profile=long` is for before a release."""

from hypothesis import settings

settings.register_profile("quick", max_examples=200, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.load_profile("quick")

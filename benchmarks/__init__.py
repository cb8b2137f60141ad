"""How fast the parts are beside what one would write or install instead; `python -m benchmarks` runs them all."""

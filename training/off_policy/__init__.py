"""Logged requests answered again, by who answered them or by another, and what that would have earned."""

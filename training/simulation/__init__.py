"""A world whose truth is known, and its users on a real server."""

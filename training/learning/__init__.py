"""What learns: the towers, the rankers, and the search for their settings."""

"""What is written down before it is acknowledged: impressions and outcomes, and what changed in the catalogue."""

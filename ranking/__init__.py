"""From candidates to a calibrated probability of every action."""

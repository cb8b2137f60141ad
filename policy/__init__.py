"""From probabilities to a slate drawn with an exact propensity, and what such a slate would have earned."""

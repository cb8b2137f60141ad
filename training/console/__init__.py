"""A page in the browser over a running server: look-ups, generations, experiments, reports."""

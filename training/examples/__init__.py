"""What models learn from: what could be known at a moment, joined to what came of it."""

"""Published tasks on files of one's own: how good each stage is, measured as the literature measures it."""

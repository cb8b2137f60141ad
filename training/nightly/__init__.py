"""The nightly loop: what was logged becomes the next generation, or a page that says why not."""

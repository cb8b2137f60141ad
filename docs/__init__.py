"""The manual, and what makes its generated pages and pictures: `make reference`, `make pictures`, `make docs`."""

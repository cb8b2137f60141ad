"""Pages and tables: what was found, drawn and said in sentences."""

"""The impression log as offline work sees it: read, compacted, kept, and worked on segment by segment."""

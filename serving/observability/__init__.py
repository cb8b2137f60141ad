"""The server seen from outside: what it counts, tells, and traces."""

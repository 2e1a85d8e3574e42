"""Pre-rankers: training them, and what they say of a position."""

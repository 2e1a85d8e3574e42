"""Semantic IDs: from what is known of an item to a short sequence of codes."""

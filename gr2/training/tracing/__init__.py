"""Traces: asked of a teacher, logged, kept as a table, and made into examples."""

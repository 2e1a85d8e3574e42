"""Teachers: who ranks a slate and says why, so that a reasoner can learn from it."""

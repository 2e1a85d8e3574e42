"""What the student learns from: positions, lessons of a reasoner, clicks, and the memory of other users."""

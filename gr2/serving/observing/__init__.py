"""How a server is watched: log, durations, metrics as text, spans."""

"""The serving half: the engine and the gRPC server around it."""

"""The gRPC services: requests in, replies or statuses out."""

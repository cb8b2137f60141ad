"""One request: the pipeline, its gRPC services, user state, the impression log and the client."""

"""The services of the mesh; none imports another, they meet over gRPC."""

"""The edge: one Envoy in front of every service, configured from the contract."""

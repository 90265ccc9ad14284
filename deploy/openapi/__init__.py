"""The published reference of the REST paths, made of the contract: gen/openapi.json."""

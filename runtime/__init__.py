"""What every service stands on: the server, its interceptors, the contract they enforce, the database and the logs."""

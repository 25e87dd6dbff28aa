"""The protocols in which clients talk to the core; each module has `routes(server)`."""

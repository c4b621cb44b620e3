"""Language models that write for us: loaded here, or behind a server."""

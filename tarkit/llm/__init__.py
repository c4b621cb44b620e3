"""Language models that answer questions: loaded by transformers, or on a server."""

"""`tarkit demo`: a page in the browser on which a person tries a model."""

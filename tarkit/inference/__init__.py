"""A trained Tar in use: it draws pictures, reconstructs them and answers questions about them."""

"""The drawn world: scenes of shapes, their pictures, and texts and questions about them."""

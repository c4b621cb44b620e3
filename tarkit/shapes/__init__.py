"""The drawn shapes world: scenes, their pictures, everything true that can be said of them."""

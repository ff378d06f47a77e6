"""Keeping every posting list within bounds: plans are computed from the view, the single writer applies them."""

"""What crosses a boundary: events, configuration, manifests, replies, errors."""

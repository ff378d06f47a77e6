"""Where records come from, behind one small interface (``base``)."""

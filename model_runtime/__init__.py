"""Frozen encoder and multifaceted codebook: load, encode, assign; training/ builds the artifact."""

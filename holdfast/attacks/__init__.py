"""What may be done to released weights. One file an attack."""

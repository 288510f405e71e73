"""How answers are scored. One file an eval."""

"""Small models built from nothing, whose restricted knowledge is fictional. One file an organism."""

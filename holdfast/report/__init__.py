"""What a reader gets: the page and the terminal's table."""

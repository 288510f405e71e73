"""What a reader gets: the page of one run or of several, its figures as files, and the terminal's table."""

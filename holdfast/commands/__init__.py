"""What the console script does. One file a command: its options, and `main`, which takes the words behind its name."""

"""What each command does, as a function that a program can call; nothing here prints."""

"""What a run tells people: the closing table in the terminal."""

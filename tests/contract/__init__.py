"""What the project relies on of other libraries, beyond their documentation; each test names the version."""

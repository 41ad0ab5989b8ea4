"""What every transport does, as classes of tests that a package derives its own from."""

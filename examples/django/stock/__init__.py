"""The application `stock`: what is in a warehouse."""

"""`python -m postbus.cli`."""

from postbus.cli import main

if __name__ == "__main__":
    main()

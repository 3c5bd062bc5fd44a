"""`python -m medreason`."""

from medreason.cli import main

if __name__ == "__main__":
    main()

"""`python -m medreason`."""

import sys


def main() -> None:
    """Import and run the command line; Ctrl-C ends either in one line."""
    try:
        from medreason import cli  # a third of a second
    except KeyboardInterrupt:
        sys.stderr.write("medreason: interrupted before it began\n")
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()

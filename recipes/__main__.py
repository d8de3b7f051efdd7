"""`python -m recipes`: the table of contents; with `--table`, the one in README.md."""

import sys
from itertools import groupby

from recipes.engine import catalogue


def main() -> None:
    """Print every recipe with its first line, a topic at a time."""
    if sys.argv[1:] == ["--table"]:
        print(catalogue.table())
        return
    if sys.argv[1:]:
        print(f"error: unknown '{sys.argv[1]}': python -m recipes [--table]", file=sys.stderr)
        sys.exit(2)
    print("python -m recipes.NAME --help tells what a recipe can be told.\n")
    width = max(map(len, catalogue.names()))
    for topic, members in groupby(catalogue.names(), key=lambda name: name.split("_")[0]):
        print(topic)
        for name in members:
            print(f"    {name:<{width}}  {catalogue.summary(name)}")


if __name__ == "__main__":
    main()

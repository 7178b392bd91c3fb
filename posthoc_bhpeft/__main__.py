"""`python -m posthoc_bhpeft` is the command line `bhpeft`."""

from posthoc_bhpeft.cli import main

main()

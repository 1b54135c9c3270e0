"""`python -m edgellm` is `edgellm`."""

from edgellm.cli import main

main()

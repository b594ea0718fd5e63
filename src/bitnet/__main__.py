"""`python -m bitnet` is `bitnet`."""

from bitnet.cli.main import main

main()

"""`python -m foreword` is the `foreword` command."""

from foreword.cli.main import main

main()

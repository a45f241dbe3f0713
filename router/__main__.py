"""`python -m mlxfleet.router PROCESS_FILE`."""

from mlxfleet.router.main import main

main()

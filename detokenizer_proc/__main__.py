"""`python -m mlxfleet.detokenizer_proc PROCESS_FILE`."""

from mlxfleet.detokenizer_proc.main import main

main()

"""`python -m mlxfleet.tokenizer_proc PROCESS_FILE`."""

from mlxfleet.tokenizer_proc.main import main

main()

"""The operator's command line. It speaks to the operator API alone, and imports only `polder`."""

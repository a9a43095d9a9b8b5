"""One module per verb (or family of verbs). `edgectl.cli` imports the one that is asked for."""

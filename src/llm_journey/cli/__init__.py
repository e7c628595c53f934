"""The command `journey`: parse, call app, print. Data on stdout, everything else on stderr; no heavy import here."""

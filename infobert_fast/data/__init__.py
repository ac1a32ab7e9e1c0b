"""Corpora, tokenization, the generated demo corpus; import from the modules, so that the package itself stays light."""

"""Tasks, corpora, encoding, collation and sampling."""

"""Tasks, corpora, collation and sampling."""

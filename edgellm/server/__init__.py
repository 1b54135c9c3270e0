"""`edgellm serve`: the APIs that language model clients speak, and a page for people, over edgellm.AsyncClient."""

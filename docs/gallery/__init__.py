"""The pictures of the README and the documents, drawn by `python -m docs.gallery`."""

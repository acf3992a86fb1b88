"""An index in a Milvus server."""

"""The web page and the HTTP API: a model and an index behind FastAPI. `serve.py` starts it."""

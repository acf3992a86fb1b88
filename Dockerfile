# docker build --target cpu -t dr_keras .          docker build --target gpu -t dr_keras:gpu .
#
# mkdir -p runs && sudo chown 1000 runs    # the user below, unless that is your own id
# docker run --rm -v "$PWD/my-folders:/data:ro" -v "$PWD/runs:/app/runs" dr_keras train --data /data --run first
# docker run --rm -v "$PWD/my-folders:/data:ro" -v "$PWD/runs:/app/runs" dr_keras retrieve --query cat_1.jpg
# docker run --rm -p 6006:6006 -v "$PWD/runs:/app/runs" dr_keras tensorboard --logdir runs --host 0.0.0.0
# docker run --rm -p 8000:8000 -v "$PWD/runs:/app/runs" dr_keras serve --run first --host 0.0.0.0
# On the GPU: the same with --gpus all and dr_keras:gpu.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DR_KERAS_CACHE=/cache
WORKDIR /app
RUN useradd --create-home --uid 1000 dr_keras \
    && mkdir -p /data /cache /app/runs \
    && chown dr_keras:dr_keras /data /cache /app/runs
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY dr_keras ./dr_keras
COPY train.py retrieve.py evaluate.py index.py serve.py ./
RUN for script in train retrieve evaluate index serve; do \
        chmod 755 "/app/$script.py" && ln -s "/app/$script.py" "/usr/local/bin/$script"; \
    done
# /data: images to train on. /cache: downloads and decoded images. /app/runs: the run folders.
VOLUME ["/data", "/cache", "/app/runs"]
EXPOSE 6006 8000
CMD ["train", "--help"]

FROM base AS gpu
RUN python -m pip install --editable '.[demo,gpu,serve]'
USER 1000

FROM base AS cpu
RUN python -m pip install --editable '.[demo,fast,serve]'
USER 1000

# docker build --target cpu -t dr_keras .          docker build --target gpu -t dr_keras:gpu .
# docker run --rm -v "$PWD/my-folders:/data:ro" -v "$PWD/runs:/app/runs" dr_keras python train.py --data /data --run first
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY dr_keras ./dr_keras
COPY train.py retrieve.py evaluate.py ./
RUN useradd --create-home --uid 1000 dr_keras \
    && mkdir -p /data runs /home/dr_keras/.cache/dr_keras \
    && chown -R dr_keras:dr_keras runs /home/dr_keras/.cache
VOLUME ["/data", "/app/runs"]
EXPOSE 6006
CMD ["python", "train.py", "--help"]

FROM base AS gpu
RUN python -m pip install --editable '.[demo,gpu]'
USER dr_keras

FROM base AS cpu
RUN python -m pip install --editable '.[demo]'
USER dr_keras

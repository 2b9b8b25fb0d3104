# For CPU:          docker build -t jaxtrain .
# For NVIDIA GPUs:  docker build -t jaxtrain --build-arg EXTRAS=cuda .   (run with --gpus all)
#
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" jaxtrain train --technique pt
FROM python:3.12-slim
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY jaxtrain jaxtrain
COPY configs configs
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" && rm -rf /src/*
# Any user may run it: what is cached goes to a folder of its own, or to a volume mounted there.
ENV HOME=/cache MPLCONFIGDIR=/cache/matplotlib
RUN mkdir -m 1777 /cache
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["jaxtrain"]
CMD ["--help"]

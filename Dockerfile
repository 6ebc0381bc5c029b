# The server in a container. Build: docker build -t gemma4 .   Run, with a checkpoint mounted:
#   docker run --rm -p 127.0.0.1:8000:8000 -e GEMMA4_API_KEY=secret -v /models/gemma4-31b-int4:/model:ro gemma4
# This image computes on the CPU; Dockerfile.cuda is the one for GPUs.
FROM debian:12 AS build
WORKDIR /source
COPY tools/setup.sh tools/setup.sh
RUN tools/setup.sh
COPY . .
RUN cmake --preset release && cmake --build --preset release --target gemma4

FROM debian:12-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libhwy1 libjpeg62-turbo libpng16-16 libwebp7 libgif7 libheif1 \
       libedit2 libcurl4 ca-certificates \
    && rm -rf /var/lib/apt/lists/* && useradd --system --no-create-home gemma4
COPY --from=build /source/build/release/gemma4 /usr/local/bin/gemma4
USER gemma4
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=10m CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["gemma4", "serve", "--host", "0.0.0.0", "--model"]
CMD ["/model"]

# The image of isobar. Build it with BuildKit or without: `docker build -t isobar .`
# How to run it, and what that printed: docs/docker.md

FROM rust:1-slim-bookworm AS build
WORKDIR /build

# The dependencies, in a layer of their own that lasts until a manifest changes: with an empty library, an empty binary, and
# empty files for the benches that the manifest names.
COPY Cargo.toml Cargo.lock ./
COPY derive derive
RUN mkdir src benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && sed -n '/^\[\[bench\]\]/,/^$/ s/^name = "\(.*\)"$/benches\/\1.rs/p' Cargo.toml | xargs touch \
    && cargo build --release --locked --bin isobar

# What is ours. The files may be older than the empty ones were, so they are dated anew: cargo compares times.
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin isobar \
    && strip --strip-debug -o /isobar target/release/isobar

FROM debian:bookworm-slim
# The issuers that the system trusts: what certificates of backends are verified against where no ca is given.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
LABEL org.opencontainers.image.title="isobar" \
      org.opencontainers.image.description="A reverse-proxy load balancer and gateway: one binary, one file, reloads without loss" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /isobar /usr/local/bin/isobar

# A number, so that an orchestrator can see that it is not root. It writes nothing: the root file system may be read-only.
USER 65532:65532

# The directory /etc/isobar is where the configuration is mounted. Mount the directory and not the file: a file that an
# editor replaces is not seen through a mount of the file itself.
EXPOSE 8080
STOPSIGNAL SIGTERM
# Asks /readyz at 127.0.0.1:9900. Where [admin] says otherwise: --health-cmd "isobar healthcheck --admin ADDRESS".
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["isobar", "healthcheck"]
ENTRYPOINT ["isobar"]
CMD ["--config", "/etc/isobar/lb.toml"]

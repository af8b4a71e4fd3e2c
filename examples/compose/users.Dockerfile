# The user service, for trying isobar in front of it. From the top of the repository:
#   docker build -f examples/compose/users.Dockerfile -t isobar-users .
# Not a stage of the Dockerfile there: without BuildKit every stage is built, and a build of isobar need not wait for this.

FROM rust:1-slim-bookworm AS build
WORKDIR /build

# The dependencies, as in the Dockerfile of isobar. Not optimized: an example need not be fast, but soon there.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches examples \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs > examples/user_service.rs \
    && sed -n '/^\[\[bench\]\]/,/^$/ s/^name = "\(.*\)"$/benches\/\1.rs/p' Cargo.toml | xargs touch \
    && cargo build --locked --example user_service

COPY src src
COPY examples/user_service.rs examples/
RUN touch src/lib.rs src/main.rs examples/user_service.rs \
    && cargo build --locked --example user_service \
    && strip -o /user_service target/debug/examples/user_service

FROM debian:bookworm-slim
COPY --from=build /user_service /usr/local/bin/user_service
USER 65532:65532
EXPOSE 9001
STOPSIGNAL SIGTERM
ENTRYPOINT ["user_service", "--host", "0.0.0.0", "--port", "9001"]

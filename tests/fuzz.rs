//! The inputs that fuzzing has kept, looked at again by the checks of the fuzz targets: see `fuzz/README.md`. One input of yours:
//! `FUZZ_INPUT=PATH cargo test --test fuzz TARGET`. What becomes of headers is nobody's business outside of the library, so that
//! target needs `--features fuzzing`.

// They are modules of another crate.
#![allow(unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/config.rs"]
mod config;
#[path = "../fuzz/src/connection.rs"]
mod connection;
#[cfg(feature = "fuzzing")]
#[path = "../fuzz/src/headers.rs"]
mod headers;
#[path = "../fuzz/src/http2.rs"]
mod http2;
#[path = "../fuzz/src/inside.rs"]
mod inside;
#[path = "../fuzz/src/response.rs"]
mod response;
#[path = "../fuzz/src/route.rs"]
mod route;
#[path = "../fuzz/src/strict.rs"]
mod strict;

fn replay(target: &str, check: fn(&[u8])) {
    let kept = match std::env::var("FUZZ_INPUT") {
        Ok(path) => vec![PathBuf::from(path)],
        Err(_) => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
            let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            files.map(|file| file.expect("a file").path()).collect()
        }
    };
    assert!(!kept.is_empty(), "no input is kept for {target}");
    // Whoever floods is kept waiting for a second: several wait together.
    std::thread::scope(|scope| {
        for some in kept.chunks(kept.len().div_ceil(THREADS)) {
            scope.spawn(move || {
                for path in some {
                    // Told where the check panics.
                    println!("{}", path.display());
                    check(&fs::read(path).expect("a file"));
                }
            });
        }
    });
}

const THREADS: usize = 12;

#[test]
fn config() {
    replay("config", config::check);
}

#[test]
fn connection() {
    replay("connection", connection::check);
}

#[cfg(feature = "fuzzing")]
#[test]
fn headers() {
    replay("headers", headers::check);
}

#[test]
fn response() {
    replay("response", response::check);
}

#[test]
fn route() {
    replay("route", route::check);
}

//! The registered instances on disk, so that a start after any end knows them.
//!
//! One file, which takes the place of the one before as a whole. One task writes it, as often as there are changes and a few times a second at
//! most; changes that come while it writes are written together. A registration is answered when it is on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, Now};
use super::instance::{CheckState, Instance, Registration, Status};

/// Bytes of a file that is read: many more than a hundred thousand instances take.
const BYTES_MAX: u64 = 512 * 1024 * 1024;

/// The version of what is in the file.
const VERSION: u64 = 1;

/// What is written: the instances as they were at a time.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) index: u64,
    pub(super) instances: Vec<Arc<Instance>>,
}

impl Saved {
    pub(super) fn of(catalog: &Catalog) -> Self {
        Self { index: catalog.index(), instances: catalog.all().cloned().collect() }
    }
}

#[derive(Serialize)]
struct Written<'a> {
    version: u64,
    index: u64,
    instances: Vec<WrittenInstance<'a>>,
}

#[derive(Serialize)]
struct WrittenInstance<'a> {
    said: &'a Registration,
    checks: Vec<(Status, &'a str)>,
    maintenance: Option<&'a str>,
    registered_ms: u64,
    changed_ms: u64,
}

#[derive(Deserialize)]
struct ReadFile {
    version: u64,
    index: u64,
    instances: Vec<ReadInstance>,
}

#[derive(Deserialize)]
struct ReadInstance {
    said: Registration,
    checks: Vec<(Status, String)>,
    maintenance: Option<String>,
    registered_ms: u64,
    changed_ms: u64,
}

/// The file in a state directory.
pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("registry").join("instances.json")
}

/// What was left; an empty catalog where there is nothing.
///
/// # Errors
/// When there is a file and it cannot be read, or makes no sense.
pub(super) fn read(path: &Path, now: Now) -> io::Result<Catalog> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Catalog::new(now)),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut text)?;
    let ReadFile { version, index, instances } = serde_json::from_slice(&text)?;
    if version != VERSION {
        return Err(io::Error::other(format!("it is of version {version}, and this program writes version {VERSION}")));
    }
    Ok(Catalog::restored(instances.into_iter().map(|it| restored(it, now.at)), index, now))
}

fn restored(read: ReadInstance, now: Instant) -> Instance {
    let ReadInstance { said, checks, maintenance, registered_ms, changed_ms } = read;
    let mut known = checks.into_iter();
    let checks = said.checks.iter().map(|spec| {
        let (status, output) = known.next().unwrap_or((spec.initial, String::new()));
        let critical_since = (status == Status::Critical).then_some(now);
        CheckState { status, output, due: now, critical_since, streak: 0, is_running: false }
    });
    let checks = checks.collect();
    Instance { said, checks, maintenance, created: 0, modified: 0, registered_ms, renewed_ms: 0, changed_ms }
}

/// Writes the file. Blocks until it is on the disk.
///
/// # Errors
/// The file system's.
pub(super) fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let instances = saved.instances.iter().map(|instance| WrittenInstance {
        said: &instance.said,
        checks: instance.checks.iter().map(|check| (check.status, check.output.as_str())).collect(),
        maintenance: instance.maintenance.as_deref(),
        registered_ms: instance.registered_ms,
        changed_ms: instance.changed_ms,
    });
    let text = serde_json::to_vec(&Written { version: VERSION, index: saved.index, instances: instances.collect() })?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = write_beside(&beside, &text)
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Moves a file that makes no sense aside, for an operator to look at. Says where it is now.
///
/// # Errors
/// The file system's.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("unreadable.json");
    fs::rename(path, &aside)?;
    Ok(aside)
}

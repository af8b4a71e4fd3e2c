//! A file as it was read: whole, or perhaps half of what is being written.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{Problem, Problems};
use super::secret_file::Access;

/// Bytes that a configuration may have: far more than one that is written has, and little enough to be read and thrown away.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The bytes of a file that is still open, before anything is made of them.
#[derive(Debug)]
pub struct ReadFile {
    file: File,
    /// What it was when its first byte was read.
    before: Metadata,
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) access: Access,
}

impl ReadFile {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or has more than [`FILE_BYTES_MAX`].
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let name = path.display().to_string();
        Self::open(path, &name).map_err(|what| {
            let mut problem = Problem::error(what);
            problem.file = name;
            Problems::new(vec![problem])
        })
    }

    fn open(path: &Path, name: &str) -> Result<Self, String> {
        let failed = |error: io::Error| format!("could not read it: {error}");
        let mut file = File::open(path).map_err(failed)?;
        // Of the file that is open: what has the name may be another by now.
        let before = file.metadata().map_err(failed)?;
        if before.len() > FILE_BYTES_MAX {
            return Err(too_large(&format!("{} bytes", before.len())));
        }
        let mut bytes = Vec::with_capacity(before.len() as usize + 1);
        (&mut file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(too_large(&format!("more than {FILE_BYTES_MAX} bytes")));
        }
        Ok(Self { access: Access::of(&before), file, before, name: name.to_owned(), bytes })
    }

    /// What was known of it when its first byte was read.
    pub fn before(&self) -> &Metadata {
        &self.before
    }

    /// Whether it has not been written since its first byte was read. That it was renamed or removed is no matter.
    pub fn is_unchanged(&self) -> bool {
        let written = |data: &Metadata| (data.len(), data.mtime(), data.mtime_nsec());
        let whole = !self.before.is_file() || self.before.len() == self.bytes.len() as u64;
        whole && self.file.metadata().is_ok_and(|now| written(&now) == written(&self.before))
    }
}

fn too_large(size: &str) -> String {
    let mib = FILE_BYTES_MAX / (1024 * 1024);
    format!("is too large: it has {size}, and a configuration has {FILE_BYTES_MAX} ({mib} MiB) at most")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("isobar-file-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_is_written_meanwhile_is_seen_and_what_is_renamed_is_not() {
        let (path, moved) = (Scratch::new("one"), Scratch::new("two"));
        std::fs::write(&path.0, "one").unwrap();
        let read = ReadFile::read(&path.0).unwrap();
        std::fs::rename(&path.0, &moved.0).unwrap();
        std::fs::write(&path.0, "another").unwrap();
        assert!(read.is_unchanged());
        std::fs::OpenOptions::new().append(true).open(&moved.0).unwrap().set_len(9).unwrap();
        assert!(!read.is_unchanged());
    }

    #[test]
    fn one_that_is_too_large_is_told_with_its_size_and_is_not_read() {
        let path = Scratch::new("large");
        File::create(&path.0).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        let problem = ReadFile::read(&path.0).unwrap_err().to_string();
        for part in [&*path.0.display().to_string(), "67108865 bytes", "67108864 (64 MiB) at most"] {
            assert!(problem.contains(part), "{part} is not in {problem}");
        }
        let problem = ReadFile::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(problem.contains("more than 67108864 bytes"), "{problem}");
    }
}

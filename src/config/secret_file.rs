//! The users that may read a file that holds a secret.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The permissions of a file, as it was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    mode: u32,
}

/// Reads a file, and says which users may.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> io::Result<(Vec<u8>, Access)> {
    let mut file = File::open(path)?;
    // Of the file that is open: what has the name may be another by now.
    let access = Access::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((bytes, access))
}

impl Access {
    /// As it stands with a file.
    pub(super) fn of(data: &Metadata) -> Self {
        Self { mode: data.mode() & 0o7777 }
    }

    /// Whether others than its owner and its group may do anything with it.
    pub fn is_everybodys(self) -> bool {
        self.mode & 0o007 != 0
    }

    /// What keeps them out of the file that is called so.
    pub fn mend(self, file: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        // In double quotes are variables of the environment, which are a shell's too.
        let quoted = file.starts_with('"') || (!file.is_empty() && file.chars().all(plain));
        if quoted { format!("chmod o-rwx {file}") } else { format!("chmod o-rwx '{}'", file.replace('\'', r"'\''")) }
    }
}

/// The mode, in octal as `chmod` has it.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_group_are_not_everybody() {
        for (mode, everybodys) in
            [(0o600, false), (0o640, false), (0o660, false), (0o644, true), (0o602, true), (0o777, true)]
        {
            assert_eq!(Access { mode }.is_everybodys(), everybodys, "{mode:o}");
        }
        assert_eq!(Access { mode: 0o644 }.to_string(), "0644");
    }

    #[test]
    fn the_command_that_mends_it_can_be_pasted() {
        let mend = |file| Access { mode: 0o644 }.mend(file);
        assert_eq!(mend("/etc/isobar/a-b.key"), "chmod o-rwx /etc/isobar/a-b.key");
        assert_eq!(mend("it's mine.key"), r"chmod o-rwx 'it'\''s mine.key'");
        assert_eq!(mend("\"${KEYS}/a.key\""), "chmod o-rwx \"${KEYS}/a.key\"");
    }
}

//! Reads from `/proc` and the control groups what the process uses and what it may. On other systems than Linux nothing is
//! known. For the control plane: files are read, though none that waits for a disk.

use std::fs;
use std::path::{Path, PathBuf};

use super::Usage;

/// What the process may use. Read once, at the start: it hardly changes while a process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// File descriptors: the soft limit of `RLIMIT_NOFILE`. `None`: not known, or no limit.
    pub descriptors: Option<u64>,
    /// Bytes of memory: the smallest limit of its control groups, or all that the machine has. `None`: not known.
    pub memory: Option<u64>,
}

impl Allowance {
    /// What the system says.
    pub fn read() -> Self {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let of_groups =
            group_files(&groups).into_iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        Self { descriptors: open_files_max(&limits), memory: of_groups.chain(kilobytes(&machine, "MemTotal:")).min() }
    }

    /// The parts that `open` descriptors and `resident` bytes are of it.
    pub fn usage(&self, open: Option<u64>, resident: Option<u64>) -> Usage {
        let part = |used: Option<u64>, may: Option<u64>| Some(used? as f64 / may?.max(1) as f64);
        Usage { descriptors: part(open, self.descriptors), memory: part(resident, self.memory) }
    }

    /// What the process uses of it now.
    pub fn usage_now(&self) -> Usage {
        self.usage(open_descriptors(), resident_bytes())
    }
}

/// How many file descriptors the process may have open: the soft limit of `RLIMIT_NOFILE`. `None`: not known, or no limit.
pub fn descriptors_max() -> Option<u64> {
    open_files_max(&fs::read_to_string("/proc/self/limits").ok()?)
}

/// File descriptors that are open.
pub fn open_descriptors() -> Option<u64> {
    let folder = Path::new("/proc/self/fd");
    // Since Linux 6.2 that is its size; before, it is 0, and they have to be counted.
    match fs::metadata(folder).ok()?.len() {
        0 => Some(fs::read_dir(folder).ok()?.count() as u64),
        open => Some(open),
    }
}

/// Bytes of memory that are resident.
pub fn resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// `Max open files            1024                 524288               files`: the first of the two.
fn open_files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `VmRSS: 1234 kB` in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1_024)
}

/// Where the limits of a process stand that is in these control groups, one file for each group up to the root. In a container
/// the root often is the container's own.
fn group_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(path);
        files.extend(
            path.ancestors().map(|group| Path::new(root).join(group.strip_prefix("/").unwrap_or(group)).join(file)),
        );
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found_in_their_line() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             63371                63371                processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(open_files_max(limits), Some(1_024));
        assert_eq!(open_files_max("Max open files            unlimited            unlimited            files"), None);
        assert_eq!(open_files_max(""), None);
    }

    #[test]
    fn kilobytes_are_bytes() {
        assert_eq!(kilobytes("VmHWM:\t   9 kB\nVmRSS:\t    1234 kB\n", "VmRSS:"), Some(1_234 * 1_024));
        assert_eq!(kilobytes("VmRSS:\t    many kB\n", "VmRSS:"), None);
    }

    #[test]
    fn every_group_up_to_the_root_may_have_a_limit() {
        let files = |groups| group_files(groups).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/a.slice/b.service\n"),
            [
                "/sys/fs/cgroup/a.slice/b.service/memory.max",
                "/sys/fs/cgroup/a.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(
            files("12:cpu,cpuacct:/x\n4:memory:/x\n"),
            ["/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert!(files("").is_empty() && files("nonsense").is_empty());
    }

    #[test]
    fn usage_is_a_part_of_what_may_be() {
        let allowance = Allowance { descriptors: Some(1_000), memory: None };
        let usage = allowance.usage(Some(250), Some(5));
        assert_eq!(usage, Usage { descriptors: Some(0.25), memory: None });
        assert_eq!(allowance.usage(None, None), Usage::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found() {
        let allowance = Allowance::read();
        let usage = allowance.usage_now();
        assert!(usage.memory.is_some_and(|part| part > 0.0), "{allowance:?} {usage:?}");
        // Other tests open and close files meanwhile, but not hundreds.
        let held: Vec<_> = (0..300).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let with = open_descriptors().unwrap();
        drop(held);
        let without = open_descriptors().unwrap();
        assert!(with >= 303 && with > without + 150, "{with} with 300 files, {without} without");
    }
}
